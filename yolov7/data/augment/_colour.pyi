from yolov7.data.images import Image

def recolour(source: Image, target: Image, hue: float, saturation: float, value: float, /) -> None:
    """Recolour an image (H, W, 3) into another array of the same size, or into itself."""
