"""How single classes of vision-language models take an image: the layout (`inputs.LAYOUTS`) and how many tokens stand for it."""

IMAGES: dict[str, tuple[str, int]] = {}
