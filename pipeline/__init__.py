"""The experiment pipeline around `yolov7`: DVC stages, Ray, MLflow, reports and the command line."""
