// Draws the plots, and filters them with the tables. Everything it reads is in this page.
(() => {
  "use strict";
  const { charts } = JSON.parse(document.getElementById("report-data").textContent);
  const root = document.documentElement;
  const views = new Map();
  let turn = 0;

  // Colours stand in the style sheet alone: a probe turns a name into the light or the dark one.
  const probe = document.body.appendChild(Object.assign(document.createElement("i"), { hidden: true }));
  const colour = (name) => {
    probe.style.color = name;
    return getComputedStyle(probe).color;
  };
  const coloured = (part) => {
    if (typeof part === "string") return part.startsWith("var(--") ? colour(part) : part;
    if (Array.isArray(part)) return part.map(coloured);
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, coloured(value)]));
  };

  const config = () => {
    const [ink, muted, line] = ["var(--ink)", "var(--muted)", "var(--line)"].map(colour);
    const font = getComputedStyle(document.body).fontFamily;
    const text = { labelColor: muted, titleColor: muted, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 500 };
    return {
      background: null, font,
      view: { stroke: null },
      axis: { ...text, gridColor: line, domainColor: line, tickColor: line, domain: false, ticks: false, labelPadding: 6, titlePadding: 8 },
      legend: { labelColor: ink, titleColor: muted, labelFontSize: 12, symbolSize: 90 },
      text: { color: ink },
    };
  };

  const checked = (name) => new Set([...document.querySelectorAll(`input[name=${name}]:checked`)].map((box) => box.value));
  const shownRows = (chart) => {
    const variants = checked("variant");
    return chart.rows.filter((row) => row.variant === undefined || variants.has(row.variant));
  };

  const draw = async () => {
    const mine = ++turn;
    delete root.dataset.drawn;
    const style = config();
    for (const place of document.querySelectorAll(".plot")) {
      const chart = charts[place.dataset.chart];
      const spec = { ...coloured(chart.spec), description: chart.text };
      spec.data = { name: "rows", values: shownRows(chart) };
      views.get(place)?.finalize();
      const options = { actions: false, renderer: "svg", ast: true, config: style, tooltip: { theme: dark() ? "dark" : "light" } };
      const { view } = await vegaEmbed(place, spec, options);
      views.set(place, view);
      if (mine !== turn) return;
      await new Promise((next) => setTimeout(next));
    }
    root.dataset.drawn = String(views.size);
  };

  const filter = () => {
    const shown = { task: checked("task"), variant: checked("variant") };
    for (const part of document.querySelectorAll("main [data-task], main [data-variant]")) {
      part.hidden = ["task", "variant"].some((name) => name in part.dataset && !shown[name].has(part.dataset[name]));
    }
    for (const [place, view] of views) {
      const chart = charts[place.dataset.chart];
      if (chart.rows.some((row) => row.variant !== undefined)) view.data("rows", shownRows(chart)).runAsync();
    }
    const whole = (row) => !row.hidden && !row.parentElement.hidden;
    const count = [...document.querySelectorAll("#results tr[data-task][data-variant]")].filter(whole).length;
    document.getElementById("shown").textContent = count === 1 ? "1 model shown" : `${count} models shown`;
    window.dispatchEvent(new Event("resize")); // a plot that was hidden had no width
  };
  for (const box of document.querySelectorAll(".filters input")) box.addEventListener("change", filter);

  const system = matchMedia("(prefers-color-scheme: dark)");
  const theme = document.getElementById("theme");
  const dark = () => (theme.value === "auto" ? system.matches : theme.value === "dark");
  theme.addEventListener("change", () => {
    if (theme.value === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme.value;
    draw();
  });
  system.addEventListener("change", draw);

  // The numbers behind a plot, as a table, when they are asked for.
  const written = (value) => (typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(6)) : value ?? "");
  const fill = (details) => {
    const { rows } = charts[details.dataset.chart];
    const names = Object.keys(rows[0] ?? {}).filter((name) => !["variant", "place", "mark"].includes(name));
    const table = document.createElement("table");
    const add = (parent, kind, text) => Object.assign(parent.appendChild(document.createElement(kind)), { textContent: text });
    const head = table.createTHead().insertRow();
    for (const name of names) add(head, "th", name.replaceAll("_", " ")).scope = "col";
    const body = table.createTBody();
    for (const row of rows) {
      const line = body.insertRow();
      for (const name of names) {
        const cell = add(line, "td", String(written(row[name])));
        if (typeof row[name] === "number") cell.className = "num";
      }
    }
    details.querySelector(".scroll").replaceChildren(table);
  };
  for (const details of document.querySelectorAll("details[data-chart]")) {
    details.addEventListener("toggle", () => details.open && fill(details), { once: true });
  }

  filter(); // a browser keeps the boxes of the page it leaves
  draw();
})();
