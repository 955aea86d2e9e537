// The page's content: which curves go into which section, and the sample browser. Appended to page_charts.js.

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
    { title: "Held-out accuracy", note: [run.counts, "band: confidence interval of pass@1"].filter(Boolean).join("; "), size: "half", range: [0, 1], format: percent, series: [
      ...passes.map((key, i) => i === 0
        ? band(curve(key, key.slice(5), { color: "--c0", width: 2.5 }), `${key}_low`, `${key}_high`)
        : curve(key, key.slice(5), { color: "--c2", opacity: 0.4 + 0.6 * i / (passes.length - 1) })),
      ...keysOf(run.eval, /^eval\/cons@/).map((key) => curve(key, key.slice(5), { color: "--c1", dash: "5 4" })),
    ] },
    { title: "Held-out accuracy by task", note: `pass@1; band: confidence interval; ${run.counts}`, size: "half", range: [0, 1], format: percent,
      series: keysOf(run.eval, /^eval\/[^/]+\/pass@1$/).map((key) => band(curve(key, key.slice(5, -7)), `${key}_low`, `${key}_high`)) },
    { title: "Reward", note: "mean over the step's completions", size: "half", series: [curve("reward", "reward", { width: 2.5 })] },
    components.length > 1 && { title: "Reward parts", series: components.map((key) => curve(key, key.slice(8, -5))) },
    { title: "Reward spread", note: "standard deviation; of single rewards over all completions", series: [
      curve("reward_std", "mean within groups"), ...spreads.map((key) => curve(key, key.slice(8, -4)))] },
    { title: "Shares", note: "of completions or groups", format: percent, series: [
      curve("frac_reward_zero_std", "groups without signal"), curve("completions/clipped_ratio", "truncated"),
      curve("completions/empty_ratio", "empty"), curve("completions/repeated_ratio", "repeated in their group"), curve("frac_trained_samples", "trained on"), curve("frac_unrewarded_samples", "without reward"),
      curve("eval/truncated_ratio", "truncated, held-out")] },
  ];
  const behaviour = [
    { title: "Completion length", note: "tokens; band: shortest to longest", size: "half", series: [
      band(curve("completions/mean_length", "mean", { width: 2 }), "completions/min_length", "completions/max_length"),
      curve("eval/mean_length", "held-out mean", { color: "--c1" })] },
    { title: "Entropy", note: "nats per token, trained samples", size: "half", series: [curve("entropy", "entropy")] },
  ];
  const health = [
    { title: "Trainer vs. engine", note: "|Δ log p| per token, trained samples", log: true, series: [
      curve(`${differences}max`, "max", { color: "--c1" }), curve(`${differences}p999`, "99.9%", { color: "--c3" }),
      curve(`${differences}mean`, "mean", { color: "--c0" })] },
    { title: "Distance from the teacher", note: "nats per token", series: [
      curve("teacher_kl", "KL from the sampled tokens"), curve("divergence", "divergence trained on")] },
    { title: "KL to the reference model", note: "nats per token, trained samples", series: [curve("kl", "kl")] },
    { title: "Clipped ratios", note: "share of tokens, trained samples", format: percent, series: [
      curve("clip_ratio/low_mean", "low"), curve("clip_ratio/high_mean", "high"), curve("clip_ratio/region_mean", "either")] },
    { title: "Loss", note: "mean over the rollout's optimizer steps", series: [curve("loss", "loss")] },
    { title: "Gradient norm", note: "before clipping", series: [curve("grad_norm", "norm")] },
    { title: "Weight change", note: "of a step, relative", series: [curve("weight_change", "‖Δw‖ / ‖w‖")] },
    { title: "Learning rate", series: [curve("learning_rate", "learning rate")] },
  ];
  const experts = [
    { title: "Largest overload", note: "busiest expert's load over balance, minus 1", size: "half", series: [curve("moe/load_max_violation", "violation")] },
    { title: "Dead experts", note: "experts without tokens", size: "half", series: [curve("moe/dead_experts", "dead")] },
  ];
  const stale = keysOf(run.train, /^rollout\/staleness_share_\d+$/);
  const time = [
    { title: "Seconds per step", note: "stacked phases", size: "full", stacked: true,
      series: phases.filter((key) => key !== "time/evaluate").map((key) => curve(key, key.slice(5))) },
    { title: "Waiting", note: "share of the step", format: percent, range: [0, 1], series: [
      curve("rollout/idle_trainer", "trainer"), curve("rollout/idle_generator", "generation")] },
    { title: "Staleness", note: "share of tokens by missed updates", format: percent, stacked: true,
      series: stale.map((key) => curve(key, key.slice(24))) },
  ];
  ["step_time", "time/evaluate", "sampling/policy_version"].forEach((key) => drawn.add(key));
  keysOf(run.eval, /\/num_(problems|samples|unreadable)$/).forEach((key) => drawn.add(key)); // in the charts' captions
  const rest = [run.train, run.eval].flatMap((source) => Object.keys(source.series).filter((key) => !drawn.has(key)))
    .map((key) => ({ title: key, series: [curve(key, "value")] }));
  return [["Learning", learning], ["Behaviour", behaviour], ["Health", health], ["Experts", experts], ["Time", time], ["Other metrics", rest]]
    .map(([title, charts]) => [title, charts.filter(Boolean).map((chart) => ({ ...chart, series: chart.series.filter(Boolean) })).filter((chart) => chart.series.length)]);
}

// ---- samples ---------------------------------------------------------------------------------------------------

function marked(text) { // styles think and answer parts, leaves the rest as is
  const closes = text.indexOf("</think>"), opens = text.indexOf("<think>");
  let part = closes >= 0 && (opens < 0 || closes < opens) ? "think" : ""; // the prompt may have opened it
  return text.split(/(<\/?(?:think|answer)>)/).filter(Boolean).map((piece) => {
    const tag = /^<(\/?)(think|answer)>$/.exec(piece);
    if (!tag) return node("span", { className: part }, piece);
    part = tag[1] ? "" : tag[2];
    return node("span", { className: "tag" }, piece);
  });
}

function completionCard({ item: completion, all }) {
  const sign = completion.advantage > 0 ? "up" : completion.advantage < 0 ? "down" : "";
  const fact = (label, value, className = "") => node("span", {}, `${label} `, node("b", { className }, value));
  const advantage = completion.advantage === null ? "–" : (completion.advantage > 0 ? "+" : "") + completion.advantage.toFixed(2);
  const header = node("header", {}, ...times(all), fact("advantage", advantage.replace("-", "−"), "advantage"), fact("reward", show(completion.reward)));
  const parts = Object.entries(completion.rewards);
  const gated = completion.gated ?? []; // gate closed: counted as 0
  if (parts.length > 1) header.append(...parts.map(([name, value]) => fact(gated.includes(name) ? `${name} (gated)` : name, show(value))));
  header.append(tokenRange(all));
  if (completion.finish_reason === "length") header.append(node("span", { className: "flag" }, "truncated"));
  const body = node("pre", {}, ...(completion.text ? marked(completion.text) : [node("span", { className: "empty" }, "(empty)")]));
  const card = node("article", { className: `completion ${sign}` }, header, body);
  if (completion.text.length > 700 || completion.text.split("\n").length > 9) {
    const more = node("button", { className: "more" }, "Show all");
    body.classList.add("closed");
    const answer = completion.text.match(/<answer>(.*?)<\/answer>/s)?.[1].trim(); // below the fold
    if (answer) header.append(fact("answer", answer.length > 60 ? `${answer.slice(0, 60)}…` : answer));
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
  const informative = (row) => row.completions.some((c) => c.advantage);
  let group = Math.max(0, run.samples.filter((row) => row.step === steps.at(-1)).findIndex(informative));
  slider.max = String(steps.length - 1);
  slider.value = slider.max;
  const refresh = () => {
    const step = steps[Number(slider.value)], rows = run.samples.filter((row) => row.step === step);
    group = Math.min(group, rows.length - 1);
    $("step-label").textContent = `step ${step}`;
    $("earlier").disabled = slider.value === "0";
    $("later").disabled = slider.value === slider.max;
    $("groups").replaceChildren(...rows.map((row, i) => {
      const rewards = row.completions.map((c) => c.reward).filter((reward) => reward !== null);
      const mean = rewards.length ? rewards.reduce((sum, reward) => sum + reward, 0) / rewards.length : null;
      const button = node("button", { title: row.problem_id }, `group ${i + 1} · reward ${show(mean)}`);
      button.setAttribute("aria-pressed", String(i === group));
      button.addEventListener("click", () => { group = i; refresh(); });
      return button;
    }));
    const byAdvantage = rows[group].completions.toSorted((a, b) => (b.advantage ?? 0) - (a.advantage ?? 0));
    $("problem").replaceChildren(...problemPanel(rows[group]));
    const distinct = fold(byAdvantage, (c) => JSON.stringify([normalized(c.text), c.finish_reason, c.reward, c.rewards]));
    $("completions").replaceChildren(...distinct.map(completionCard));
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
  if (!figures.length) continue;
  const grid = node("div", { className: "grid" }, ...figures), section = node("section", { id: title.toLowerCase().split(" ")[0] }, node("h2", {}, title));
  if (title === "Other metrics") {
    const details = node("details", {}, node("summary", {}, `${figures.length} more, by name`), grid);
    details.addEventListener("toggle", () => redraw()); // charts have no width while closed
    section.append(details);
  } else section.append(grid);
  $("charts").append(section);
}
if (run.samples.length) browseSamples();
if (run.recipe) {
  $("recipe-text").textContent = run.recipe;
  $("recipe").hidden = false;
}
finish();
