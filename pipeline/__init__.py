"""The experiment pipeline around `yolov7`: stages, Ray, MLflow, reports, command line."""
