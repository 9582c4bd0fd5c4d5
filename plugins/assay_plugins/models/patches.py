"""An image as a row of square patches, and back."""

from jaxtyping import Array, Float


def patches_of(image: Float[Array, "batch height width channels"], side: int) -> Float[Array, "batch patches features"]:
    """The image's square patches, by rows; a patch's pixels by rows. `side` divides height and width."""
    batch, height, width, channels = image.shape
    grid = image.reshape(batch, height // side, side, width // side, side, channels)
    return grid.swapaxes(2, 3).reshape(batch, -1, side * side * channels)


def image_of(
    patches: Float[Array, "batch patches features"], rows: int, columns: int, side: int
) -> Float[Array, "batch height width channels"]:
    """The image of rows x columns such patches."""
    grid = patches.reshape(patches.shape[0], rows, columns, side, side, -1)
    return grid.swapaxes(2, 3).reshape(patches.shape[0], rows * side, columns * side, -1)
