from yolov7.data.images import Image

def recolour(source: Image, target: Image, hue: float, saturation: float, value: float, /) -> None:
    """From one image (H, W, 3) into another of the same size, or into itself."""
