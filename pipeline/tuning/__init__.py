"""Search for the best model of a scaled family within a budget: the command `yolov7 tune`."""
