"""Writers of annotation formats, and the conversion of a data set from one format to another."""
