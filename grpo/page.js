"use strict";
// Draws the page from the JSON in #run. Text reaches the document through textContent alone: model output is hostile.

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

// ---- which curves ----------------------------------------------------------------------------------------------

const drawn = new Set();

function curve(key, label, style = {}) {
  const source = key.startsWith("eval/") ? run.eval : run.train;
  drawn.add(key);
  const values = source.series[key];
  return values ? { label, steps: source.steps, values, dots: key.startsWith("eval/"), ...style } : null;
}

function band(series, low, high) {
  if (!series) return null;
  const [bottom, top] = [curve(low, ""), curve(high, "")];
  return bottom && top ? { ...series, low: bottom.values, high: top.values } : series;
}

const keysOf = (source, pattern) => Object.keys(source.series).filter((key) => pattern.test(key));

function sections() {
  const k = (key) => Number(key.split("@")[1]);
  const passes = keysOf(run.eval, /^eval\/pass@\d+$/).sort((a, b) => k(a) - k(b));
  const components = keysOf(run.train, /^rewards\/.+\/mean$/);
  const spreads = keysOf(run.train, /^rewards\/.+\/std$/);
  const order = ["generate", "reward", "score", "update", "sync", "save"];
  const phases = keysOf(run.train, /^time\//).sort((a, b) => (order.indexOf(a.slice(5)) + 99) % 99 - (order.indexOf(b.slice(5)) + 99) % 99);
  const differences = "sampling/sampling_logp_difference/";
  const learning = [
    { title: "Held-out accuracy", note: "band: interval of pass@1", size: "half", range: [0, 1], format: percent, series: [
      ...passes.map((key, i) => i === 0
        ? band(curve(key, key.slice(5), { color: "--c0", width: 2.5 }), `${key}_low`, `${key}_high`)
        : curve(key, key.slice(5), { color: "--c2", opacity: 0.4 + 0.6 * i / (passes.length - 1) })),
      ...keysOf(run.eval, /^eval\/cons@/).map((key) => curve(key, key.slice(5), { color: "--c1", dash: "5 4" })),
    ] },
    { title: "Reward", note: "mean over the step's completions", size: "half", series: [curve("reward", "reward", { width: 2 })] },
    components.length > 1 && { title: "Reward parts", series: components.map((key) => curve(key, key.slice(8, -5))) },
    { title: "Reward spread", note: "standard deviation", series: [
      curve("reward_std", "within groups"), ...spreads.map((key) => curve(key, key.slice(8, -4)))] },
    { title: "Shares", note: "of completions; of groups", format: percent, series: [
      curve("frac_reward_zero_std", "groups without signal"), curve("completions/clipped_ratio", "cut at the limit"),
      curve("completions/empty_ratio", "empty"), curve("eval/truncated_ratio", "held-out cut")] },
  ];
  const behaviour = [
    { title: "Completion length", note: "tokens; band: shortest to longest", size: "half", series: [
      band(curve("completions/mean_length", "mean", { width: 2 }), "completions/min_length", "completions/max_length"),
      curve("eval/mean_length", "held-out mean", { color: "--c1" })] },
    { title: "Entropy", note: "nats per token", size: "half", series: [curve("entropy", "entropy")] },
  ];
  const health = [
    { title: "Trainer against engine", note: "|Δ log p| per token", log: true, series: [
      curve(`${differences}max`, "max", { color: "--c1" }), curve(`${differences}p999`, "99.9%", { color: "--c3" }),
      curve(`${differences}mean`, "mean", { color: "--c0" })] },
    { title: "KL to the reference", note: "nats per token", series: [curve("kl", "kl")] },
    { title: "Clipped ratios", note: "share of tokens", format: percent, series: [
      curve("clip_ratio/low_mean", "low"), curve("clip_ratio/high_mean", "high"), curve("clip_ratio/region_mean", "either")] },
    { title: "Loss", series: [curve("loss", "loss")] },
    { title: "Gradient norm", note: "before clipping", series: [curve("grad_norm", "norm")] },
    { title: "Learning rate", series: [curve("learning_rate", "learning rate")] },
  ];
  const experts = [
    { title: "Largest overload", note: "busiest expert's load over balance, minus 1", size: "half", series: [curve("moe/load_max_violation", "violation")] },
    { title: "Dead experts", note: "experts without a token", size: "half", series: [curve("moe/dead_experts", "dead")] },
  ];
  const time = [
    { title: "Seconds per step", note: "stacked phases", size: "full", stacked: true,
      series: phases.filter((key) => key !== "time/evaluate").map((key) => curve(key, key.slice(5))) },
  ];
  ["step_time", "time/evaluate", "sampling/policy_version"].forEach((key) => drawn.add(key));
  const rest = [run.train, run.eval].flatMap((source) => Object.keys(source.series).filter((key) => !drawn.has(key)))
    .map((key) => ({ title: key, series: [curve(key, "value")] }));
  return [["Learning", learning], ["Behaviour", behaviour], ["Health", health], ["Experts", experts], ["Time", time], ["Other figures", rest]]
    .map(([title, charts]) => [title, charts.filter(Boolean).map((chart) => ({ ...chart, series: chart.series.filter(Boolean) })).filter((chart) => chart.series.length)]);
}

// ---- one chart -------------------------------------------------------------------------------------------------

const redraws = []; // on a new width or colour scheme
const followers = []; // each gets the step under the pointer, or null
const allSteps = [...new Set([...run.train.steps, ...run.eval.steps])].sort((a, b) => a - b);
const [firstStep, lastStep] = [allSteps[0] ?? 0, Math.max(allSteps.at(-1) ?? 1, (allSteps[0] ?? 0) + 1)];
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
  return { marks: ticks(low, high, 4), y: (v) => height * (1 - (v - low) / (high - low)), label: chart.format ?? show };
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

function area(steps, low, high, point) {
  const there = steps.map((_, i) => i).filter((i) => low[i] !== null && high[i] !== null);
  const edge = (values, order) => order.map((i) => point(steps[i], values[i]).map((v) => v.toFixed(1)).join(",")).join("L");
  return there.length ? `M${edge(high, there)}L${edge(low, there.toReversed())}Z` : "";
}

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
    svg.append(shape("text", { x: x(mark), y: height - 4, "text-anchor": "middle" }, show(mark)));
  for (const one of chart.series) {
    const color = `var(${one.color})`;
    if (chart.stacked) { svg.append(shape("path", { d: area(one.steps, one.low, one.top, point), fill: color, opacity: 0.85 })); continue; }
    if (one.low) svg.append(shape("path", { d: area(one.steps, one.low, one.high, point), fill: color, opacity: 0.14 }));
    svg.append(shape("path", { d: segments(one.steps, one.values, point), fill: "none", stroke: color, "stroke-width": one.width ?? 1.6,
      "stroke-linejoin": "round", "stroke-linecap": "round", "stroke-dasharray": one.dash ?? "none", opacity: one.opacity ?? 1 }));
    if (one.dots || one.values.length === 1) one.values.forEach((value, i) => value !== null &&
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
  const svg = shape("svg", { role: "img", "aria-label": `${chart.title}, by step` });
  const figure = node("figure", { className: chart.size ?? "" },
    node("figcaption", {}, node("h3", {}, chart.title, " ", node("small", {}, note), " ", when), ...keys.map((key) => key.element)));
  figure.append(svg);
  let plot;
  const follow = (step) => {
    when.textContent = step === null ? "" : ` · step ${step}`;
    chart.series.forEach((one, i) => {
      const at = step === null ? lastIndex(one.values) : nearest(one.steps, step);
      keys[i].value.textContent = (chart.format ?? show)(one.values[at]);
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

function drawLoad(canvas, layer) {
  const { steps, loads } = run.load, experts = loads[0][layer].length;
  const [cold, even, hot, dead] = ["--cold", "--even", "--hot", "--dead"].map(color);
  canvas.width = steps.length;
  canvas.height = experts;
  canvas.style.height = `${Math.min(260, Math.max(56, experts * 9))}px`;
  canvas.style.imageRendering = "pixelated";
  const context = canvas.getContext("2d"), image = context.createImageData(steps.length, experts);
  loads.forEach((column, x) => column[layer].forEach((load, expert) => {
    const size = Math.max(-1, Math.min(1, Math.log2(Math.max(load, 1) / 100) / 2)); // ±1: a quarter, four times
    const end = size < 0 ? cold : hot;
    const rgb = load === 0 ? dead : even.map((c, i) => c + (end[i] - c) * Math.abs(size));
    image.data.set([...rgb, 255], 4 * (expert * steps.length + x));
  }));
  context.putImageData(image, 0, 0);
}

function loadFigure() {
  const { steps, loads } = run.load, layers = loads[0].length, together = layers <= 4;
  const readout = node("span", { className: "key" }, "one row per expert, one column per step");
  const scale = node("span", { className: "scale" }, "¼×", node("i"), "4×", node("i", { className: "dead" }), "no token");
  const caption = node("figcaption", {}, node("h3", {}, "Expert load ", node("small", {}, " share of tokens, relative to balance")), readout, scale);
  const figure = node("figure", { className: "full" }, caption);
  const select = node("select", { ariaLabel: "layer" }, ...loads[0].map((_, i) => node("option", { value: String(i) }, `MoE layer ${i + 1}`)));
  if (!together) caption.insertBefore(select, readout);
  for (let i = 0; i < (together ? layers : 1); i++) {
    const canvas = node("canvas");
    const layer = () => (together ? i : Number(select.value));
    if (together) figure.append(node("p", { className: "layer" }, `MoE layer ${i + 1}`));
    figure.append(canvas);
    redraws.push(() => drawLoad(canvas, layer()));
    select.addEventListener("change", () => drawLoad(canvas, layer()));
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect(), experts = loads[0][layer()].length;
      const x = Math.min(steps.length - 1, Math.max(0, Math.floor((event.clientX - box.left) / box.width * steps.length)));
      const expert = Math.min(experts - 1, Math.max(0, Math.floor((event.clientY - box.top) / box.height * experts)));
      readout.textContent = `step ${steps[x]}, layer ${layer() + 1}, expert ${expert}: ${(loads[x][layer()][expert] / 100).toFixed(2)}×`;
      hover(steps[x]);
    });
    canvas.addEventListener("pointerleave", () => { readout.textContent = "one row per expert, one column per step"; hover(null); });
  }
  figure.append(node("div", { className: "steps" }, node("span", {}, `step ${steps[0]}`), node("span", {}, `step ${steps.at(-1)}`)));
  return figure;
}

// ---- samples ---------------------------------------------------------------------------------------------------

function marked(text) { // think and answer parts, each in its own look; anything else as it is
  const closes = text.indexOf("</think>"), opens = text.indexOf("<think>");
  let part = closes >= 0 && (opens < 0 || closes < opens) ? "think" : ""; // the template may have opened it
  return text.split(/(<\/?(?:think|answer)>)/).filter(Boolean).map((piece) => {
    const tag = /^<(\/?)(think|answer)>$/.exec(piece);
    if (!tag) return node("span", { className: part }, piece);
    part = tag[1] ? "" : tag[2];
    return node("span", { className: "tag" }, piece);
  });
}

function completionCard(completion) {
  const sign = completion.advantage > 0 ? "up" : completion.advantage < 0 ? "down" : "";
  const fact = (label, value, className = "") => node("span", {}, `${label} `, node("b", { className }, value));
  const advantage = completion.advantage === null ? "–" : (completion.advantage > 0 ? "+" : "") + completion.advantage.toFixed(2);
  const header = node("header", {}, fact("advantage", advantage.replace("-", "−"), "advantage"), fact("reward", show(completion.reward)));
  const parts = Object.entries(completion.rewards);
  if (parts.length > 1) header.append(...parts.map(([name, value]) => fact(name, show(value))));
  header.append(node("span", {}, `${completion.num_tokens} tokens`));
  if (completion.finish_reason === "length") header.append(node("span", { className: "flag" }, "cut at the limit"));
  const body = node("pre", {}, ...(completion.text ? marked(completion.text) : [node("span", { className: "empty" }, "(empty)")]));
  const card = node("article", { className: `completion ${sign}` }, header, body);
  if (completion.text.length > 700 || completion.text.split("\n").length > 9) {
    const more = node("button", { className: "more" }, "Show all");
    body.classList.add("closed");
    more.addEventListener("click", () => { more.textContent = body.classList.toggle("closed") ? "Show all" : "Show less"; });
    card.append(more);
  }
  return card;
}

function problemPanel(row) {
  const messages = typeof row.prompt === "string" ? [{ role: "prompt", content: row.prompt }] : row.prompt;
  const columns = Object.entries(row.columns).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]);
  const list = node("dl", {}, ...[["problem", row.problem_id], ...columns].flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, value)]));
  return [...messages.flatMap((m) => [node("h3", {}, m.role), node("pre", {}, m.content)]), list];
}

function browseSamples() {
  const steps = [...new Set(run.samples.map((row) => row.step))].sort((a, b) => a - b);
  const slider = $("step");
  let group = 0;
  slider.max = String(steps.length - 1);
  slider.value = slider.max;
  const refresh = () => {
    const step = steps[Number(slider.value)], rows = run.samples.filter((row) => row.step === step);
    group = Math.min(group, rows.length - 1);
    $("step-label").textContent = `step ${step}`;
    $("earlier").disabled = slider.value === "0";
    $("later").disabled = slider.value === slider.max;
    $("groups").replaceChildren(...rows.map((row, i) => {
      const mean = row.completions.reduce((sum, c) => sum + (c.reward ?? 0), 0) / row.completions.length;
      const button = node("button", { title: row.problem_id }, `group ${i + 1} · mean reward ${show(mean)}`);
      button.setAttribute("aria-pressed", String(i === group));
      button.addEventListener("click", () => { group = i; refresh(); });
      return button;
    }));
    const byAdvantage = rows[group].completions.toSorted((a, b) => (b.advantage ?? 0) - (a.advantage ?? 0));
    $("problem").replaceChildren(...problemPanel(rows[group]));
    $("completions").replaceChildren(...byAdvantage.map(completionCard));
  };
  const move = (by) => () => { slider.value = String(Number(slider.value) + by); refresh(); };
  slider.addEventListener("input", refresh);
  $("earlier").addEventListener("click", move(-1));
  $("later").addEventListener("click", move(1));
  $("samples").hidden = false;
  refresh();
}

// ---- the page --------------------------------------------------------------------------------------------------

for (const [title, charts] of sections()) {
  const figures = charts.map(drawChart);
  if (title === "Experts" && run.load) figures.unshift(loadFigure());
  if (figures.length) $("charts").append(node("section", {}, node("h2", {}, title), node("div", { className: "grid" }, ...figures)));
}
if (run.samples.length) browseSamples();
if (run.recipe) {
  $("recipe-text").textContent = run.recipe;
  $("recipe").hidden = false;
}
const redraw = () => redraws.forEach((again) => again());
let drawnWidth = 0;
new ResizeObserver(() => {
  if (document.body.clientWidth !== drawnWidth) { drawnWidth = document.body.clientWidth; redraw(); }
}).observe(document.body);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
