"use strict";
// Chart drawing: lines, bands, stacks and the heat map, from the JSON in #run; page.js decides which charts.
// Text enters the document only through textContent: model output is untrusted.

const run = JSON.parse(document.getElementById("run").textContent);
const $ = (id) => document.getElementById(id);

function node(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  Object.assign(made, properties);
  made.append(...children);
  return made;
}

function shape(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

function show(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 0.001 || size >= 1e6) return value.toExponential(1).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en").replaceAll(",", "\u202f");
  return String(Number(value.toPrecision(3)));
}

const percent = (value) => (value === null || value === undefined ? "–" : `${Number((100 * value).toFixed(1))}%`);

// ---- completions -----------------------------------------------------------------------------------------------

function fold(items, keyOf) { // equal keys become one entry: [{ item, all: [item, …] }, …]
  const found = new Map();
  for (const item of items) {
    const entry = found.get(keyOf(item));
    if (entry) entry.all.push(item); else found.set(keyOf(item), { item, all: [item] });
  }
  return [...found.values()];
}

const normalized = (text) => text.toLowerCase().split(/\s+/).filter(Boolean).join(" ");
const times = (all) => (all.length > 1 ? [node("span", { className: "times", title: "completions that differ at most in case and whitespace" }, `×${all.length}`)] : []);

function tokenRange(all) {
  const counts = all.map((one) => one.num_tokens), low = Math.min(...counts), high = Math.max(...counts);
  return node("span", {}, low === high ? `${low} tokens` : `${low}–${high} tokens`);
}

// ---- one chart -------------------------------------------------------------------------------------------------

const redraws = []; // called on a new width or colour scheme
const redraw = () => redraws.forEach((again) => again());
const followers = []; // called with the step under the pointer, or null
const allSteps = [...new Set([...run.train.steps, ...run.eval.steps])].sort((a, b) => a - b);
const [firstStep, lastStep] = [allSteps[0] ?? 0, Math.max(allSteps.at(-1) ?? 1, (allSteps[0] ?? 0) + 1)];
const xName = run.axis?.name ?? "step";
const xLabel = (step) => show(run.axis ? run.axis.power ** step : step); // a page may set its own axis: 2^x samples
const hover = (step) => followers.forEach((follow) => follow(step));

function ticks(low, high, count, whole = false) {
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  let step = [1, 2, 5, 10].find((m) => m * power >= raw * 0.999) * power;
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function verticalScale(chart, height) {
  const values = chart.series.flatMap((s) => [...(s.top ?? s.values), ...(s.low ?? []), ...(s.high ?? [])]).filter((v) => v !== null);
  if (chart.log) {
    const positive = values.filter((v) => v > 0);
    const low = Math.floor(Math.log10(positive.length ? Math.min(...positive) : 1e-8));
    const high = Math.max(low + 1, Math.ceil(Math.log10(positive.length ? Math.max(...positive) : 1)));
    const every = Math.ceil((high - low) / 5);
    const marks = Array.from({ length: Math.floor((high - low) / every) + 1 }, (_, i) => 10 ** (low + i * every));
    return { marks, y: (v) => height * (1 - (Math.log10(Math.max(v, 10 ** low)) - low) / (high - low)), label: (v) => `1e${Math.round(Math.log10(v))}` };
  }
  let [low, high] = chart.range ?? [Math.min(0, ...values), Math.max(0, ...values)];
  if (low === high) high = low + 1;
  if (!chart.range) { const pad = (high - low) * 0.06; high += high > 0 ? pad : 0; low -= low < 0 ? pad : 0; }
  return { marks: ticks(low, high, 5), y: (v) => height * (1 - (v - low) / (high - low)), label: chart.format ?? show };
}

function segments(steps, values, point) { // null breaks the line
  let path = "", pen = "M";
  values.forEach((value, i) => {
    if (value === null) { pen = "M"; return; }
    const [x, y] = point(steps[i], value);
    path += `${pen}${x.toFixed(1)},${y.toFixed(1)}`;
    pen = "L";
  });
  return path;
}

function area(steps, low, high, point) { // one piece per run without nulls
  const pieces = [[]];
  steps.forEach((_, i) => (low[i] === null || high[i] === null ? pieces.push([]) : pieces.at(-1).push(i)));
  const edge = (values, order) => order.map((i) => point(steps[i], values[i]).map((v) => v.toFixed(1)).join(",")).join("L");
  return pieces.filter((piece) => piece.length).map((piece) => `M${edge(high, piece)}L${edge(low, piece.toReversed())}Z`).join("");
}

const alone = (values, i) => (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null; // a line would not show it

function stack(series) {
  const below = series[0].steps.map(() => 0);
  return series.map((one) => {
    const low = below.slice();
    one.values.forEach((value, i) => { below[i] += value ?? 0; });
    return { ...one, low, top: below.slice() };
  });
}

function draw(svg, chart) {
  const width = svg.clientWidth || 320, height = chart.size ? 190 : 140;
  const longest = Math.max(...verticalScale(chart, 1).marks.map((mark) => verticalScale(chart, 1).label(mark).length));
  const margin = { left: 12 + 6.6 * longest, right: 8, top: 6, bottom: 22 };
  const [w, h] = [width - margin.left - margin.right, height - margin.top - margin.bottom];
  const scale = verticalScale(chart, h);
  const x = (step) => margin.left + w * (step - firstStep) / (lastStep - firstStep);
  const y = (value) => margin.top + scale.y(value);
  const point = (step, value) => [x(step), y(value)];
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  svg.replaceChildren();
  for (const mark of scale.marks) {
    svg.append(shape("line", { class: "gridline", x1: margin.left, x2: width - margin.right, y1: y(mark), y2: y(mark) }));
    svg.append(shape("text", { x: margin.left - 7, y: y(mark) + 4, "text-anchor": "end" }, scale.label(mark)));
  }
  svg.append(shape("line", { class: "axis", x1: margin.left, x2: width - margin.right, y1: margin.top + h, y2: margin.top + h }));
  for (const mark of ticks(firstStep, lastStep, Math.max(2, Math.floor(w / 80)), true))
    svg.append(shape("text", { x: x(mark), y: height - 4, "text-anchor": "middle" }, xLabel(mark)));
  for (const one of chart.series) {
    const color = `var(${one.color})`;
    if (chart.stacked) { svg.append(shape("path", { d: area(one.steps, one.low, one.top, point), fill: color, opacity: 0.85 })); continue; }
    if (one.low) svg.append(shape("path", { d: area(one.steps, one.low, one.high, point), fill: color, opacity: 0.14 }));
    svg.append(shape("path", { d: segments(one.steps, one.values, point), fill: "none", stroke: color, "stroke-width": one.width ?? 1.6,
      "stroke-linejoin": "round", "stroke-linecap": "round", "stroke-dasharray": one.dash ?? "none", opacity: one.opacity ?? 1 }));
    one.values.forEach((value, i) => value !== null && (one.dots || alone(one.values, i)) &&
      svg.append(shape("circle", { cx: x(one.steps[i]), cy: y(value), r: 3, fill: color, opacity: one.opacity ?? 1 })));
  }
  const cross = shape("line", { class: "cross", y1: margin.top, y2: margin.top + h, visibility: "hidden" });
  svg.append(cross);
  return { cross, x, stepAt: (pixel) => firstStep + (lastStep - firstStep) * (pixel - margin.left) / w };
}

const nearest = (steps, step) => steps.reduce((best, s, i) => (Math.abs(s - step) < Math.abs(steps[best] - step) ? i : best), 0);

function lastIndex(values) {
  for (let i = values.length - 1; i >= 0; i--) if (values[i] !== null) return i;
  return 0;
}

function drawChart(chart) {
  chart.series.forEach((one, i) => { one.color ??= `--c${i % 8}`; });
  if (chart.stacked) chart.series = stack(chart.series);
  const when = node("small");
  const keys = chart.series.map((one) => {
    const value = node("b"), swatch = node("i");
    swatch.style.cssText = `background: var(${one.color}); opacity: ${one.opacity ?? 1}`;
    return { value, element: node("span", { className: "key" }, swatch, `${one.label} `, value) };
  });
  const note = chart.note ? `  ${chart.note}` : "";
  const svg = shape("svg", { role: "img", "aria-label": `${chart.title}, by ${xName}` });
  const figure = node("figure", { className: chart.size ?? "" },
    node("figcaption", {}, node("h3", {}, chart.title, " ", node("small", {}, note), " ", when), ...keys.map((key) => key.element)));
  figure.append(svg);
  let plot;
  const follow = (step) => {
    const steps = chart.series[0].steps;
    if (step !== null) step = steps[nearest(steps, step)]; // evaluations are less frequent than steps
    when.textContent = step === null ? "" : ` · ${xName} ${xLabel(step)}`;
    chart.series.forEach((one, i) => {
      const at = step === null ? lastIndex(one.values) : nearest(one.steps, step);
      const stale = step === null && at < one.values.length - 1; // the curve ends before its last step
      keys[i].value.textContent = (chart.format ?? show)(one.values[at]) + (stale ? ` (${xName} ${xLabel(one.steps[at])})` : "");
      keys[i].value.classList.toggle("stale", stale);
    });
    plot?.cross.setAttribute("visibility", step === null ? "hidden" : "visible");
    if (step !== null && plot) for (const end of ["x1", "x2"]) plot.cross.setAttribute(end, plot.x(step));
  };
  followers.push(follow);
  redraws.push(() => { plot = draw(svg, chart); follow(null); });
  svg.addEventListener("pointermove", (event) => {
    const at = plot.stepAt(event.clientX - svg.getBoundingClientRect().left);
    hover(allSteps[nearest(allSteps, at)]);
  });
  svg.addEventListener("pointerleave", () => hover(null));
  return figure;
}

// ---- expert load -----------------------------------------------------------------------------------------------

function color(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function drawHeat(canvas, columns, rowHeight) { // columns[x][y]: percent of balance
  const [cold, even, hot, dead] = ["--cold", "--even", "--hot", "--dead"].map(color), rows = columns[0].length;
  canvas.width = columns.length;
  canvas.height = rows;
  canvas.style.height = `${Math.min(260, Math.max(20, rows * rowHeight))}px`;
  canvas.style.imageRendering = "pixelated";
  const context = canvas.getContext("2d"), image = context.createImageData(columns.length, rows);
  columns.forEach((column, x) => column.forEach((load, y) => {
    const size = Math.max(-1, Math.min(1, Math.log2(Math.max(load, 1) / 100) / 2)); // ±1: a quarter, four times
    const end = size < 0 ? cold : hot;
    const rgb = load === 0 ? dead : even.map((c, i) => c + (end[i] - c) * Math.abs(size));
    image.data.set([...rgb, 255], 4 * (y * columns.length + x));
  }));
  context.putImageData(image, 0, 0);
}

function loadFigure() {
  const { steps, loads } = run.load, layers = loads[0].length, together = layers <= 4;
  const idle = "rows are layers or experts, columns are steps";
  const readout = node("span", { className: "key" }, idle);
  const scale = node("span", { className: "scale" }, "¼×", node("i"), "4×", node("i", { className: "dead" }), "no tokens");
  const caption = node("figcaption", {}, node("h3", {}, "Expert load ", node("small", {}, " share of tokens, relative to balance")), readout, scale);
  const figure = node("figure", { className: "full" }, caption);
  const select = node("select", { ariaLabel: "layer" }, ...loads[0].map((_, i) => node("option", { value: String(i) }, `MoE layer ${i + 1}`)));
  if (!together) caption.insertBefore(select, readout);
  function heat(label, columnsOf, rowHeight, describe, choose) { // one map; columnsOf() changes with the layer chosen
    const canvas = node("canvas");
    figure.append(node("p", { className: "layer" }, label), canvas);
    const paint = () => drawHeat(canvas, columnsOf(), rowHeight);
    redraws.push(paint);
    const cell = (event) => {
      const box = canvas.getBoundingClientRect(), within = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
      return [within((event.clientX - box.left) / box.width, steps.length), within((event.clientY - box.top) / box.height, canvas.height)];
    };
    canvas.addEventListener("pointermove", (event) => {
      const [x, row] = cell(event);
      readout.textContent = `step ${steps[x]}, ${describe(x, row)}`;
      hover(steps[x]);
    });
    canvas.addEventListener("pointerleave", () => { readout.textContent = idle; hover(null); });
    if (choose) canvas.addEventListener("click", (event) => choose(cell(event)[1]));
    return paint;
  }
  const shown = (percent) => `${(percent / 100).toFixed(2)}×`;
  const expertsOf = (layer) => (x, expert) => `layer ${layer() + 1}, expert ${expert}: ${shown(loads[x][layer()][expert])}`;
  if (layers > 1) heat("Busiest expert of each layer", () => loads.map((column) => column.map((layer) => Math.max(...layer))), 14,
    (x, layer) => {
      const dead = loads[x][layer].filter((load) => load === 0).length;
      return `layer ${layer + 1}: busiest expert ${shown(Math.max(...loads[x][layer]))}${dead ? `, ${dead} without tokens` : ""}`;
    }, (layer) => { select.value = String(layer); select.dispatchEvent(new Event("change")); });
  for (let i = 0; i < (together ? layers : 1); i++) {
    const layer = () => (together ? i : Number(select.value));
    const paint = heat(together ? `Experts of MoE layer ${i + 1}` : "Experts of the layer chosen", () => loads.map((column) => column[layer()]), 9, expertsOf(layer));
    select.addEventListener("change", paint);
  }
  figure.append(node("div", { className: "steps" }, node("span", {}, `step ${steps[0]}`), node("span", {}, `step ${steps.at(-1)}`)));
  return figure;
}

function finish() { // call once the page is complete
  for (const section of document.querySelectorAll("section:not([hidden])"))
    $("contents").append(node("a", { href: `#${section.id}` }, section.querySelector("h2").textContent));
  let drawnWidth = 0;
  new ResizeObserver(() => {
    if (document.body.clientWidth !== drawnWidth) { drawnWidth = document.body.clientWidth; redraw(); }
  }).observe(document.body);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}
