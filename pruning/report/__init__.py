"""What a run says of itself: manifest, closing table, and the page of `write_html`."""

from pruning.report.page import write_html

__all__ = ["write_html"]
