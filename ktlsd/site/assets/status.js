"use strict";
(() => {
  const PERIOD = 1000;
  const SAMPLES = 120;
  const WIDTH = 600;
  const HEIGHT = 100;
  const SVG = "http://www.w3.org/2000/svg";
  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
  const count = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
  const unit = (value) => Math.min(Math.max(Math.floor(Math.log2(Math.max(value, 1)) / 10), 0), UNITS.length - 1);
  const bytes = (value) => `${count.format(value / 1024 ** unit(value))} ${UNITS[unit(value)]}/s`;
  const number = (value) => count.format(value);
  const percent = (value) => `${count.format(value)} %`;

  // Each line gives a value out of the newest numbers and the change of the totals in a second.
  const PLOTS = [
    { title: "Open connections", show: number, least: 4, lines: [["all", (now) => now.connections], ["with kTLS", (now) => now.ktls]] },
    { title: "Requests per second", show: number, least: 4, lines: [["requests", (now, rate) => rate("requests")]] },
    {
      title: "Throughput",
      show: bytes,
      least: 1024,
      lines: [
        ["sendfile", (now, rate) => rate("sendfile")],
        ["send", (now, rate) => rate("send")],
        ["user space", (now, rate) => rate("user_space")],
      ],
    },
    {
      title: "Open TLS connections with kTLS",
      show: percent,
      top: 100,
      lines: [["share", (now) => (now.tls ? (100 * now.ktls) / now.tls : null)]],
      empty: "No open TLS connections",
    },
  ];

  const state = document.getElementById("state");
  const pause = document.getElementById("pause");

  function make(parent, name, attributes = {}, text = "") {
    const element = parent.namespaceURI === SVG || name === "svg" ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.textContent = text;
    return parent.appendChild(element);
  }

  function prepare(plot) {
    const figure = make(document.getElementById("plots"), "figure");
    const caption = make(figure, "figcaption");
    make(caption, "h3", {}, plot.title);
    const label = make(make(figure, "div", { class: "top" }), "span");
    const picture = make(figure, "svg", {
      class: "plot", role: "img", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none",
    });
    const note = make(figure, "p", { class: "note" }, plot.empty ?? "No data yet");
    const ends = make(figure, "div", { class: "ends" });
    make(ends, "span", {}, "2 minutes ago");
    make(ends, "span", {}, "now");
    const lines = plot.lines.map(([title, value], index) => {
      const legend = make(caption, "span");
      const key = make(legend, "svg", { viewBox: "0 0 24 8", "aria-hidden": "true" });
      make(key, "path", { class: `line-${index + 1}`, d: "M1 4H23" });
      legend.append(` ${title} `);
      return { title, value, values: [], legend: make(legend, "b"), path: make(picture, "path", { class: `line-${index + 1}` }) };
    });
    return { ...plot, picture, note, label, lines };
  }

  // The next of 1, 2, 5, 10, ... in the unit that it is shown in.
  function ceiling(plot, value) {
    const base = plot.show === bytes ? 1024 ** unit(value) : 1;
    const power = 10 ** Math.floor(Math.log10(value / base));
    return [1, 2, 5, 10].map((step) => step * power * base).find((step) => step >= value);
  }

  function draw(plot) {
    const most = Math.max(plot.least ?? 0, ...plot.lines.flatMap((line) => line.values.map((value) => value ?? 0)));
    const top = plot.top ?? ceiling(plot, most);
    plot.label.textContent = plot.show(top);
    const spoken = plot.lines.map(({ title, values, legend, path }) => {
      const first = SAMPLES - values.length;
      let pen = "M";
      const steps = values.map((value, index) => {
        if (value === null) {
          pen = "M";
          return "";
        }
        const x = ((first + index) * WIDTH) / (SAMPLES - 1);
        const y = HEIGHT - (value * HEIGHT) / top;
        const step = `${pen}${x.toFixed(1)} ${y.toFixed(1)}`;
        // A line of no length shows a value that stands alone.
        const dot = pen === "M" ? `h0` : "";
        pen = "L";
        return step + dot;
      });
      path.setAttribute("d", steps.join(""));
      const last = values.at(-1) ?? null;
      legend.textContent = last === null ? "\u2013" : plot.show(last);
      return `${title} ${last === null ? "unknown" : legend.textContent}`;
    });
    plot.note.hidden = plot.lines.some(({ values }) => values.some((value) => value !== null));
    plot.picture.setAttribute("aria-label", `${plot.title}: ${spoken.join(", ")}`);
  }

  function fill(body, rows) {
    const heads = [...body.parentElement.tHead.rows[0].cells];
    body.replaceChildren();
    for (const texts of rows) {
      const row = make(body, "tr");
      texts.forEach((text, index) => {
        const { className, textContent } = heads[index];
        make(row, "td", { "data-label": textContent, ...(className && { class: className }) }, text);
      });
    }
  }

  function say(text) {
    // Only what is new: it is read out.
    if (state.textContent !== text) state.textContent = text;
  }

  let before = null;
  function add(now) {
    const rate = (name) => {
      if (before === null || now[name] < before[name] || now.time <= before.time) return null;
      return (now[name] - before[name]) / (now.time - before.time);
    };
    for (const plot of plots) {
      for (const line of plot.lines) {
        line.values.push(line.value(now, rate));
        if (line.values.length > SAMPLES) line.values.shift();
      }
      draw(plot);
    }
    before = now;
  }

  const latest = {};
  async function poll() {
    try {
      const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(10 * PERIOD) });
      if (!response.ok) throw new Error(response.statusText);
      const shown = await response.json();
      say(shown.state);
      add(shown.numbers);
      for (const [name, text] of Object.entries(shown.figures)) document.getElementById(name).textContent = text;
      for (const [name, rows] of Object.entries(shown.tables)) {
        const text = JSON.stringify(rows);
        // A reload can bring a table that this page was made without.
        const body = document.getElementById(name);
        if (body && latest[name] !== text) fill(body, rows);
        latest[name] = text;
      }
    } catch {
      say("ktlsd does not answer");
      before = null;
    }
  }

  const plots = PLOTS.map(prepare);
  let busy = false;
  let paused = false;
  async function tick() {
    if (busy || paused) return;
    busy = true;
    await poll();
    busy = false;
  }
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", paused);
    // What is sent meanwhile is nobody's rate.
    before = null;
  });
  setInterval(tick, PERIOD);
  tick();
})();
