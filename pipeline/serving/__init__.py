"""The HTTP service of a trained model: requests, batches of concurrent requests, answers, the server."""
