"""What an SVG figure of matplotlib holds."""

import re
from xml.etree import ElementTree


def drawn(svg):
    """Whether every axes holds a line, a collection, or more patches than its background and two spines."""
    groups = [
        g
        for g in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}g")
        if re.fullmatch(r"axes_\d+", g.get("id", ""))
    ]
    kinds = [[child.get("id", "").rpartition("_")[0] for child in axes] for axes in groups]
    return bool(kinds) and all(
        any(kind == "line2d" or kind.endswith("Collection") for kind in held) or held.count("patch") > 3
        for held in kinds
    )
