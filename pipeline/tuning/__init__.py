"""The search of `yolov7 tune`, without Ray: the budget, the space, the sampler, the journal and what comes out."""
