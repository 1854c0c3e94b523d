"use strict";
// The page is complete without this: it adds switches for the exits and values under the pointer.
(() => {
  const names = new Map();
  for (const line of document.querySelectorAll("#curves .line[data-name]")) {
    if (line.dataset.name) names.set(line.dataset.exit, line.dataset.name);
  }
  const toggles = document.getElementById("toggles");
  if (toggles && names.size > 1) {
    for (const [number, name] of [...names].sort((a, b) => a[0] - b[0])) {
      const label = document.createElement("label");
      const box = document.createElement("input");
      const key = document.createElement("span");
      box.type = "checkbox";
      box.checked = true;
      key.className = "key";
      key.style.setProperty("--key", `var(--exit-${number < 0 ? "all" : number % 7})`);
      label.append(box, key, name);
      box.addEventListener("change", () => {
        for (const line of document.querySelectorAll(`#curves .line[data-exit="${number}"]`)) {
          line.classList.toggle("off", !box.checked);
        }
      });
      toggles.append(label);
    }
    toggles.hidden = false;
  }

  const hover = document.createElement("div");
  hover.className = "hover";
  hover.hidden = true;
  document.body.append(hover);
  const shown = (value) => (Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(3)));
  for (const chart of document.querySelectorAll("#curves svg.chart")) {
    const [x0, x1, left, right] = chart.dataset.x.split(" ").map(Number);
    const [y0, y1, bottom, top] = chart.dataset.y.split(" ").map(Number);
    const lines = [...chart.querySelectorAll(".line")].map((line) => ({
      line,
      points: line.querySelector(".strong").getAttribute("points").split(" ").map((point) => point.split(",").map(Number)),
    }));
    const cursor = document.createElementNS("http://www.w3.org/2000/svg", "line");
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y1", top);
    cursor.setAttribute("y2", bottom);
    const leave = () => {
      hover.hidden = true;
      cursor.remove();
    };
    chart.addEventListener("pointermove", (event) => {
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse()).x;
      const visible = lines.filter(({ line }) => !line.classList.contains("off"));
      if (at < left - 4 || at > right + 4 || !visible.length) return leave();
      const nearest = visible.map(({ line, points }) => ({
        name: line.dataset.name,
        point: points.reduce((best, point) => (Math.abs(point[0] - at) < Math.abs(best[0] - at) ? point : best)),
      }));
      const x = nearest[0].point[0];
      cursor.setAttribute("x1", x);
      cursor.setAttribute("x2", x);
      chart.append(cursor);
      const step = Math.round(x0 + ((x - left) / (right - left)) * (x1 - x0));
      const told = nearest.map(({ name, point }) => `${name ? name + " " : ""}${shown(y0 + ((point[1] - bottom) / (top - bottom)) * (y1 - y0))}`);
      hover.textContent = `step ${step.toLocaleString("en")}: ${told.join(", ")}`;
      hover.hidden = false;
      const width = document.documentElement.clientWidth;
      hover.style.left = `${Math.max(4, Math.min(event.pageX + 14, width - hover.offsetWidth - 4))}px`;
      hover.style.top = `${event.pageY + 14}px`;
    });
    chart.addEventListener("pointerleave", leave);
  }
})();
