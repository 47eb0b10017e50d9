"""Open a report of `memax-rl compare --out` in headless Chromium, and look for what is cut, overlaps or is loaded.

python tests/stress/report.py FOLDER/report.html [SCREENSHOTS]

Needs `pip install playwright`, and `playwright install chromium` or a Chromium of the system in the path. There is no
network for the page, and it must ask for nothing but itself. Screenshots are written into the folder SCREENSHOTS.
"""

import shutil
import sys
from pathlib import Path

WIDTHS = (1280, 390)
# What is wrong with the page as it is laid out, a line each.
_FAULTS = """() => {
  const found = [], width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) found.push("the page scrolls sideways");
  const shown = e => { const r = e.getBoundingClientRect(); return r.width > 0 && r.height > 0; };
  const name = e => `${e.tagName.toLowerCase()} ${JSON.stringify(e.textContent.slice(0, 40))}`;
  const overlap = (a, b) => Math.min(Math.min(a.right, b.right) - Math.max(a.left, b.left),
                                     Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top)) > 1;
  for (const e of document.querySelectorAll("body *")) {
    if (!shown(e)) continue;
    // The heat map is scrolled on a narrow screen.
    if (e.closest(".heat .scroll")) continue;
    const box = e.getBoundingClientRect();
    if (box.right > width + 1 || box.left < -1) found.push(`${name(e)} is beyond the page`);
    const clips = getComputedStyle(e).overflowX !== "visible";
    if (clips && e.scrollWidth > e.clientWidth + 1) found.push(`${name(e)} is cut`);
  }
  for (const svg of document.querySelectorAll("svg")) {
    const frame = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll("text")].map(t => [t, t.getBoundingClientRect()]);
    texts.forEach(([t, box], i) => {
      const wide = box.left < frame.left - 1 || box.right > frame.right + 1;
      const high = box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
      if (wide || high) found.push(`${name(t)} is cut by its chart`);
      for (const [u, other] of texts.slice(i + 1))
        if (overlap(box, other)) found.push(`${name(t)} lies over ${name(u)}`);
    });
  }
  const texts = "h1, h2, h3, h4, p, figcaption, td > span, th button, .legend button, nav a, label, footer";
  const leaves = [...document.querySelectorAll(texts)].filter(shown).map(e => [e, e.getBoundingClientRect()]);
  leaves.forEach(([e, box], i) => {
    for (const [f, other] of leaves.slice(i + 1, i + 400))
      if (!e.contains(f) && overlap(box, other)) found.push(`${name(e)} lies over ${name(f)}`);
  });
  return found;
}"""


def look(page, width: int, report: Path) -> list[str]:
    """Return what is wrong with the report at a width."""
    faults, asked = [], []
    page.on("console", lambda message: faults.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: faults.append(f"script: {error}"))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    faults += [f"asks for {url}" for url in asked if url != report.as_uri()] + page.evaluate(_FAULTS)
    table = page.locator("table").first
    if width > 720:
        table.locator("th button").nth(1).click()
    else:
        page.locator(".sorter select").first.select_option("1")
    sorted_keys = [float(e.get_attribute("data-n") or "nan") for e in table.locator("tbody td:nth-child(2)").all()]
    if sorted_keys != sorted(sorted_keys):
        faults.append("a table is not sorted by a click")
    for button in page.locator(".legend button").all()[:1]:
        button.click()
        if page.locator(".line.off").count() != 1:
            faults.append("a line is not hidden by a click on its name")
        button.click()
        if page.locator(".line.off").count():
            faults.append("a line is not shown again")
    return faults


def main() -> int:
    from playwright.sync_api import sync_playwright  # pyright: ignore[reportMissingImports]

    report = Path(sys.argv[1]).resolve()
    found = 0
    with sync_playwright() as playwright:
        system = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=system, args=["--no-sandbox"])
        print(f"Chromium {browser.version}")
        for width in WIDTHS:
            context = browser.new_context(viewport={"width": width, "height": 900}, offline=True)
            page = context.new_page()
            faults = look(page, width, report)
            if len(sys.argv) > 2:
                page.screenshot(path=str(Path(sys.argv[2]) / f"report-{width}.png"), full_page=True)
            print(f"{width} pixels: {len(faults)} faults", *faults[:20], sep="\n  ")
            found += len(faults)
        browser.close()
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
