"""The command line: one function per command. Each imports what it needs, so that `yolov7 --help` starts quickly."""
