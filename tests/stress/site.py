"""Open every page of the built site in headless Chromium, at two widths, and look for what is cut or beyond the page.

mkdocs build --site-dir site && python tests/stress/site.py site [SCREENSHOTS]

Needs `pip install playwright`, and `playwright install chromium` or a Chromium of the system in the path. There is no
network for the pages, and they must ask for nothing but the site. Screenshots are written into the folder SCREENSHOTS.
"""

import shutil
import sys
from pathlib import Path

WIDTHS = (1280, 390)
# What is wrong with a page as it is laid out, a line each. What is inside an element that scrolls may be wider.
_FAULTS = """() => {
  const found = [], width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push("the page scrolls sideways");
  const scrolls = e => { for (; e; e = e.parentElement)
    if (["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX)) return true; return false; };
  const content = document.querySelector(".md-content");
  for (const e of content.querySelectorAll("*")) {
    const box = e.getBoundingClientRect();
    if (!box.width || !box.height || scrolls(e.parentElement)) continue;
    if (box.right > width + 1 || box.left < -1)
      found.push(`${e.tagName.toLowerCase()} ${JSON.stringify(e.textContent.slice(0, 40))} is beyond the page`);
  }
  for (const e of content.querySelectorAll("img"))
    if (!e.complete || !e.naturalWidth) found.push(`the picture ${e.getAttribute("src")} is not there`);
  for (const e of content.querySelectorAll("p, li"))
    if (/\\\\\\(|\\\\\\[|\\]\\(\\w/.test([...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join("")))
      found.push(`${JSON.stringify(e.textContent.slice(0, 60))} has Markdown or TeX that was not understood`);
  return found;
}"""


def look(page, path: Path, site: Path) -> list[str]:
    """Return what is wrong with a page."""
    faults, asked = [], []
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    faults += [f"asks for {url}" for url in asked if not url.startswith((site.as_uri(), "data:"))]
    return faults + page.evaluate(_FAULTS)


def main() -> int:
    """Look at all pages, and return whether something is wrong."""
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    site = Path(sys.argv[1]).resolve()
    found = 0
    with sync_playwright() as playwright:
        system = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        print(f"Chromium {browser.version}")
        for width in WIDTHS:
            context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
            for path in sorted(set(site.rglob("*.html")) - {site / "404.html"}):
                page, name = context.new_page(), str(path.relative_to(site))
                faults = look(page, path, site)
                if len(sys.argv) > 2:
                    shot = Path(sys.argv[2]) / f"{name.replace('/', '-')}-{width}.png"
                    page.screenshot(path=str(shot), full_page=True)
                page.close()
                if faults:
                    print(f"{name}, {width} pixels: {len(faults)} faults", *faults[:8], sep="\n  ")
                found += len(faults)
        browser.close()
    print(f"{found} faults")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
