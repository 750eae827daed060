"""How much of a model was pruned, in words."""

from collections.abc import Mapping, Sequence


def coverage(widths: Sequence[int], total: int, left: Mapping[str, str]) -> str:
    """Such as "24 of 50 FFNs of 1,536 neurons; left: vision_config.intermediate_size (26 FFNs, ...)".

    Args:
        widths: of the FFNs that are pruned.
        total: number of FFNs in the model.
        left: for config entries whose FFNs are not pruned, how many these are and why.
    """
    kinds = " or ".join(f"{width:,}" for width in sorted(set(widths)))
    pruned = f"{len(widths)} of {total}" if total > len(widths) else str(total)
    rest = ", ".join(f"{entry} ({reason})" for entry, reason in left.items())
    return f"{pruned} FFNs of {kinds} neurons" + (f"; left: {rest}" if rest else "")
