"""What mkdocs cannot do by itself for this documentation; `mkdocs.yml` names this file as its hooks.

Links that lead out of `docs/` are made the forge's or plain text. Diagrams are drawn in the reader's
browser by a Mermaid of the site's own (`OVERNIGHT_MERMAID` names the file): the theme would fetch one from
a public host. Without the file, they are shown as they are written.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)"
)
_SCRIPT = "assets/javascripts/mermaid.min.js"


def on_config(config: Any) -> Any:
    """Have Mermaid's fences made diagrams if there is something to draw them.

    Pages that the navigation names and nobody has written yet are left out of it.
    """
    config["nav"] = _written(config["nav"], Path(config["docs_dir"]))
    if _mermaid() is not None:
        # Here, because the theme's packages are not there for whoever checks this file's types.
        from pymdownx.superfences import (  # noqa: PLC0415
            fence_code_format,
        )

        fence = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}
        config["mdx_configs"].setdefault("pymdownx.superfences", {})["custom_fences"] = [fence]
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Point links that leave `docs/` at the forge, or keep their words only."""
    del files
    folder = posixpath.dirname(page.file.src_uri)

    def settle(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", folder, link[3]))
        if target.startswith("docs/") or target == "docs":
            return link[0]
        if not config["repo_url"]:
            return link[2]
        return f"[{link[2]}]({config['repo_url'].rstrip('/')}/blob/main/{target}{link[4] or ''})"

    return _LINK.sub(settle, markdown)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Give pages with a diagram the script that draws it, before the theme looks for one."""
    del config
    if 'class="mermaid"' not in output:
        return output
    up = "../" * page.url.count("/")
    return output.replace("</head>", f'<script src="{up}{_SCRIPT}"></script></head>', 1)


def on_post_build(*, config: Any) -> None:
    """Put the script into the site."""
    if (source := _mermaid()) is not None:
        target = Path(config["site_dir"]) / _SCRIPT
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())


def _written(navigation: Any, docs: Path) -> Any:
    """The entries of a navigation whose pages are there."""
    if isinstance(navigation, str):
        return navigation if (docs / navigation).exists() else None
    if isinstance(navigation, list):
        return [kept for entry in navigation if (kept := _written(entry, docs))]
    entries = {title: _written(entry, docs) for title, entry in navigation.items()}
    return {title: kept for title, kept in entries.items() if kept}


def _mermaid() -> Path | None:
    path = os.environ.get("OVERNIGHT_MERMAID")
    return Path(path) if path else None
