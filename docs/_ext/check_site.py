"""What `make docs` asks of the built pages: every public name is there, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "src"))  # this checkout's names, as in conf.py

from api_pages import documented
from sphinx.util.inventory import InventoryFile

# What a browser fetches by itself; a link that a reader may click is no such thing.
LOADED = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"(?P<src>(?:https?:)?//[^\"]+)\""
    r"|<link\b(?=[^>]*\brel=\"(?:stylesheet|preload|icon)\")[^>]*\bhref=\"(?P<href>(?:https?:)?//[^\"]+)\""
)


def missing_names(site: Path) -> list[str]:
    """Public names without an entry in the inventory that Sphinx writes for other projects."""
    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    listed = {name for kind in inventory.data if kind.startswith("py:") for name in inventory.data[kind]}
    return sorted({name for names in documented().values() for name in names} - listed)


def loaded_from_elsewhere(site: Path) -> list[str]:
    """Pages that would need the network to look right."""
    return [
        f"{page.relative_to(site)}: {match['src'] or match['href']}"
        for page in site.rglob("*.html")
        for match in LOADED.finditer(page.read_text())
    ]


def main(site: Path) -> int:
    missing, foreign = missing_names(site), loaded_from_elsewhere(site)
    for name in missing:
        print(f"expected every public name in the API reference; {name} is not there")
    for line in foreign:
        print(f"expected a site that works offline; found {line}")
    count = sum(len(names) for names in documented().values())
    print(
        f"{len(list(site.rglob('*.html')))} pages, {count} public names, {len(missing)} missing, {len(foreign)} foreign"
    )
    return bool(missing or foreign)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
