"""How nbval compares: strictly, and never with a cell that was not run."""

import nbformat
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path, parent):
    """Refuse notebooks with cells that hold no stored output to compare with."""
    collectors = yield
    if file_path.suffix == ".ipynb":
        cells = nbformat.read(file_path, as_version=4).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
            raise pytest.UsageError(
                f"{file_path.name}: not run from top to bottom; nbval compares nothing in a cell "
                "that was not run. `make notebooks` runs them all"
            )
        for collector in [collectors] if not isinstance(collectors, list) else collectors:
            # Addresses in warnings, dates in SVG and players in HTML differ from run to run.
            collector.skip_compare = (
                *collector.skip_compare,
                "stderr",
                "image/svg+xml",
                "text/html",
            )
    return collectors
