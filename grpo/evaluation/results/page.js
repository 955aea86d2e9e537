// An evaluation's page: pass@k, lengths, and the samples with the extracted answer, verdict and reason.

function histogram(task) {
  const { edges, right, wrong } = run.lengths[task];
  const svg = shape("svg", { role: "img", "aria-label": `${task} completion lengths` });
  const key = (color, text) => { const i = node("i"); i.style.background = `var(${color})`; return node("span", { className: "key" }, i, text); };
  const figure = node("figure", { className: "half" }, node("figcaption", {},
    node("h3", {}, `Completion length, ${task} `, node("small", {}, "tokens")), key("--good", "right"), key("--bad", "not right")), svg);
  redraws.push(() => {
    const width = svg.clientWidth || 320, height = 190, margin = { left: 40, right: 8, top: 6, bottom: 22 };
    const [w, h] = [width - margin.left - margin.right, height - margin.top - margin.bottom];
    const most = Math.max(1, ...right.map((count, i) => count + wrong[i])), bar = w / right.length;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.height = `${height}px`;
    svg.replaceChildren();
    const y = (count) => margin.top + h * (1 - count / (1.05 * most));
    for (const mark of ticks(0, most, 4, true)) {
      svg.append(shape("line", { class: "gridline", x1: margin.left, x2: width - margin.right, y1: y(mark), y2: y(mark) }));
      svg.append(shape("text", { x: margin.left - 7, y: y(mark) + 4, "text-anchor": "end" }, show(mark)));
    }
    right.forEach((count, i) => {
      const x = margin.left + i * bar, total = count + wrong[i];
      svg.append(shape("rect", { x: x + 0.5, width: Math.max(1, bar - 1), y: y(count), height: y(0) - y(count), fill: "var(--good)", opacity: 0.85 }));
      svg.append(shape("rect", { x: x + 0.5, width: Math.max(1, bar - 1), y: y(total), height: y(count) - y(total), fill: "var(--bad)", opacity: 0.6 }));
    });
    svg.append(shape("line", { class: "axis", x1: margin.left, x2: width - margin.right, y1: y(0), y2: y(0) }));
    const every = Math.max(1, Math.round(right.length / (w / 70)));
    edges.forEach((edge, i) => { if (i % every === 0) svg.append(shape("text", { x: margin.left + i * bar, y: height - 4, "text-anchor": "middle" }, show(edge))); });
  });
  return figure;
}

function passCurves() {
  const series = Object.entries(run.eval.series).map(([task, values]) => ({ label: task, steps: run.eval.steps, values, dots: true, width: 2 }));
  return drawChart({ title: "pass@k", note: "at least one of k samples is right", size: "half", format: percent, range: [0, 1], series });
}

// ---- samples ---------------------------------------------------------------------------------------------------

const KINDS = {
  "not right": (s) => s.verdict !== "right",
  "wrong": (s) => s.verdict === "wrong" && s.answer !== null,
  "no answer": (s) => s.verdict !== "right" && s.answer === null,
  "unverifiable": (s) => s.verdict === "unverifiable",
  "truncated": (s) => s.finish_reason === "length",
  "differs from published": (s) => s.published !== undefined && s.published !== null && s.published !== (s.verdict === "right"),
  "right": (s) => s.verdict === "right",
  "all": () => true,
};

function sampleCard({ item: sample, all }) {
  const sign = sample.verdict === "right" ? "up" : "down";
  const header = node("header", {}, node("span", { className: "verdict" }, sample.verdict ?? "not graded"),
    ...times(all),
    node("span", {}, `sample${all.length > 1 ? "s" : ""} ${all.map((one) => one.sample + 1).join(", ")}`), tokenRange(all));
  if (sample.finish_reason === "length") header.append(node("span", { className: "flag" }, "truncated"));
  if (typeof sample.published === "boolean") header.append(node("span", {}, `published as ${sample.published ? "right" : "wrong"}`));
  const facts = node("dl", { className: "grading" });
  const fact = (name, value) => facts.append(node("dt", {}, name), node("dd", { className: value === null ? "none" : "" }, value ?? "none"));
  fact("answer", sample.answer);
  if (sample.reason) fact("reason", sample.reason);
  const body = node("pre", {}, sample.completion || node("span", { className: "empty" }, "(empty)"));
  const card = node("article", { className: `completion ${sign}` }, header, facts, body);
  if (sample.completion.length > 900 || sample.completion.split("\n").length > 12) {
    const more = node("button", { className: "more" }, "Show all");
    body.classList.add("closed");
    more.addEventListener("click", () => { more.textContent = body.classList.toggle("closed") ? "Show all" : "Show less"; });
    card.append(more);
  }
  return card;
}

function browse() {
  const tasks = [...new Set(run.samples.map((s) => s.task))];
  let kind = run.samples.some(KINDS["differs from published"]) ? "differs from published" : "not right", place = 0;
  $("task").append(...tasks.map((task) => node("option", { value: task }, task)));
  const buttons = Object.keys(KINDS).map((name) => {
    const button = node("button", {}, name);
    button.addEventListener("click", () => { kind = name; place = 0; refresh(); });
    return button;
  });
  $("verdicts").append(...buttons);
  const refresh = () => {
    const ofTask = run.samples.filter((s) => s.task === $("task").value);
    buttons.forEach((button) => {
      const count = ofTask.filter(KINDS[button.dataset.kind ??= button.textContent]).length;
      button.textContent = `${button.dataset.kind} ${count}`;
      button.setAttribute("aria-pressed", String(button.dataset.kind === kind));
      button.hidden = count === 0 && button.dataset.kind !== kind;
    });
    const chosen = ofTask.filter(KINDS[kind]), ids = [...new Set(chosen.map((s) => s.problem_id))];
    place = Math.max(0, Math.min(place, ids.length - 1));
    $("place").textContent = ids.length ? `problem ${place + 1} of ${ids.length}` : "none";
    $("earlier").disabled = place === 0;
    $("later").disabled = place >= ids.length - 1;
    const id = ids[place], problem = run.problems[id];
    $("problem").replaceChildren(...(problem ? [node("h3", {}, id), node("pre", {}, problem.prompt),
      node("dl", {}, node("dt", {}, "reference answer"), node("dd", {}, problem.reference_answer ?? "–"))] : []));
    $("problem").scrollTop = $("problem").scrollHeight; // the question follows the worked examples
    const distinct = fold(chosen.filter((s) => s.problem_id === id),
      (s) => JSON.stringify([normalized(s.completion), s.finish_reason, s.verdict, s.answer, s.reason, s.published]));
    $("completions").replaceChildren(...distinct.map(sampleCard));
  };
  $("task").addEventListener("change", () => { place = 0; refresh(); });
  $("earlier").addEventListener("click", () => { place -= 1; refresh(); });
  $("later").addEventListener("click", () => { place += 1; refresh(); });
  $("kept").textContent = run.samples.length < run.total ? `This page has ${run.samples.length} of ${run.total} samples, those that are not right first; samples.jsonl has all of them.` : "";
  refresh();
}

// ---- the page --------------------------------------------------------------------------------------------------

if (run.eval.steps.length > 1) $("charts").append(passCurves());
$("charts").append(...Object.keys(run.lengths).map(histogram));
if (!$("charts").children.length) $("curves").hidden = true;
if (run.samples.length) browse(); else $("samples").hidden = true;
finish();
