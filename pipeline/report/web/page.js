"use strict";
const R = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page");

// ---- elements and numbers

function el(tag, text, attributes) {
  const e = document.createElement(tag);
  if (text !== undefined && text !== null) e.textContent = text;
  for (const [key, value] of Object.entries(attributes || {})) e.setAttribute(key, value);
  return e;
}
function add(parent, ...children) {
  for (const child of children) if (child) parent.append(child);
  return parent;
}
const missing = v => v === null || v === undefined;
const num = (v, digits = 2) => missing(v) ? "" : Number(v).toFixed(digits);
const db = v => missing(v) ? "" : v === "inf" ? "exact" : num(v, 1);
function big(v) {
  for (const [size, unit] of [[1e9, " G"], [1e6, " M"], [1e3, " k"]])
    if (v >= size) return num(v / size, unit === " k" ? 1 : 2) + unit;
  return String(v);
}
const percent = v => missing(v) ? "" : num(v) + " %";
const sum = (list, of) => list.reduce((a, x) => a + of(x), 0);

function section(title, id) {
  add(page, el("h2", title, { id: id || title.toLowerCase().replace(/\W+/g, "-") }));
}
function grid(title, names, rows) {
  if (!rows.length) return;
  if (title) section(title);
  const head = add(el("tr"), ...names.map(n => el("th", n)));
  const body = rows.map(r => add(el("tr"), ...r.map(v => el("td", v))));
  const table = add(el("table"), add(el("thead"), head), add(el("tbody"), ...body));
  add(page, add(el("div", null, { class: "scroll" }), table));
}
function list(title, lines, kind) {
  if (!lines.length) return;
  section(title);
  add(page, add(el("ul"), ...lines.map(line => el("li", line, { class: kind || "" }))));
}

// ---- pictures

function svg(tag, attributes, title) {
  const e = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  if (title) add(e, svg("title", {})).lastChild.textContent = title;
  return e;
}
function plot(caption, draw, width = 300, height = 130) {
  const s = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": caption });
  draw(s);
  const kind = width > 300 ? "wide" : "";
  return add(el("figure", null, { class: kind }), s, el("figcaption", caption));
}
function label(s, x, y, text, anchor = "start") {
  const t = svg("text", { x, y, "font-size": 9, fill: "currentColor", "text-anchor": anchor });
  t.textContent = text;
  s.append(t);
}
const line = (points, more) => svg("polyline", { points: points.join(" "), fill: "none", ...more });
const segment = (x1, y1, x2, y2, more) => svg("line", { x1, y1, x2, y2, ...more });

function histogram(d) {
  const [low, high] = [Math.min(d.low, d.range[0]), Math.max(d.high, d.range[1])];
  const ends = `${num(d.range[0], 3)} to ${num(d.range[1], 3)}`;
  const zeros = num(100 * d.zeros / d.values, 1);
  const caption = `Data (${big(d.values)} values, ${zeros} % zero), log scale. ` +
    `Line: the chosen range, ${ends}; red: clipped`;
  return plot(caption, s => {
    const width = high - low || 1, at = v => 5 + 290 * (v - low) / width;
    const peak = Math.log10(1 + Math.max(...d.counts)) || 1;
    const step = (d.high - d.low) / d.counts.length;
    d.counts.forEach((count, i) => {
      if (!count) return;
      const height = 95 * Math.log10(1 + count) / peak, from = d.low + i * step;
      const out = from + step <= d.range[0] || from >= d.range[1];
      s.append(svg("rect", {
        x: at(from), y: 105 - height, width: Math.max(290 * step / width, .8), height,
        fill: out ? "var(--bad)" : "var(--accent)", opacity: .75,
      }, `${num(from, 3)} to ${num(from + step, 3)}: ${count}`));
    });
    s.append(segment(at(d.range[0]), 109, at(d.range[1]), 109,
      { stroke: "currentColor", "stroke-width": 2 }));
    label(s, 5, 122, num(low, 3));
    label(s, 295, 122, num(high, 3), "end");
  });
}
function search(d) {
  if (!d.tried.length)
    return plot(`${d.method}: takes one range, weighs nothing`, s => label(s, 5, 60, "no candidates"));
  return plot(`${d.method}: loss of its candidates (log scale); dashed: the chosen one`, s => {
    const log = v => Math.log10(Math.max(v, 1e-30));
    const losses = d.tried.map(t => log(t[2])), chosen = log(d.chosen[2]);
    const low = Math.min(...losses, chosen), high = Math.max(...losses, chosen);
    const y = v => 105 - 95 * (v - low) / (high - low || 1);
    const x = i => 5 + 290 * i / Math.max(losses.length - 1, 1);
    s.append(line(losses.map((v, i) => x(i) + "," + y(v)), { stroke: "var(--accent)" }));
    s.append(segment(5, y(chosen), 295, y(chosen),
      { stroke: "var(--good)", "stroke-dasharray": "4 3" }));
    const ends = `${num(d.chosen[0], 3)} to ${num(d.chosen[1], 3)}`;
    label(s, 5, 122, `chosen ${ends}, loss ${d.chosen[2].toPrecision(3)}`);
  });
}
function winners(d) {
  const rows = [["seen", [d.low, d.high]], ["chosen", d.range], ...Object.entries(d.winners)];
  return plot("What each method would choose, beside all values seen", s => {
    const low = Math.min(...rows.map(r => r[1][0]));
    const width = Math.max(...rows.map(r => r[1][1])) - low || 1, height = 115 / rows.length;
    const colors = { chosen: "var(--good)", seen: "currentColor" };
    rows.forEach(([name, [from, to]], i) => {
      const y = 6 + height * (i + .5), x = v => 62 + 233 * (v - low) / width;
      label(s, 2, y + 3, name);
      const stroke = colors[name] || "var(--accent)";
      s.append(svg("line", { x1: x(from), y1: y, x2: x(to), y2: y, stroke, "stroke-width": 4 },
        `${num(from, 4)} to ${num(to, 4)}`));
    });
  });
}
function weights(d) {
  const n = d.weights_low.length;
  if (!n) return null;
  const how = d.channel_wise ? "a scale each" : "one scale";
  const caption = `Weights: range of each output channel (${n}${n === 256 ? " shown" : ""}), ${how}`;
  return plot(caption, s => {
    const most = Math.max(...d.weights_high.map(Math.abs), ...d.weights_low.map(Math.abs)) || 1;
    const y = v => 60 - 52 * v / most;
    d.weights_low.forEach((v, i) => {
      const x = 5 + 290 * (i + .5) / n, width = Math.max(290 / n - .6, .6);
      s.append(segment(x, y(v), x, y(d.weights_high[i]),
        { stroke: "var(--accent)", "stroke-width": width }));
    });
    label(s, 5, 125, `largest magnitude ${most.toPrecision(3)}`);
  });
}
/** Curves over one axis: series of [name, values, color, opacity], drawn with both ends. */
function curves(caption, names, series) {
  return plot(caption, s => {
    const all = series.flatMap(([, values]) => values).filter(v => typeof v === "number");
    const low = Math.min(...all), high = Math.max(...all), n = names.length;
    const x = i => 40 + 650 * i / Math.max(n - 1, 1);
    const y = v => 165 - 150 * (v - low) / (high - low || 1);
    [low, (low + high) / 2, high].forEach(v => {
      s.append(segment(40, y(v), 690, y(v), { stroke: "var(--line)" }));
      label(s, 36, y(v) + 3, v.toPrecision(3), "end");
    });
    series.forEach(([name, values, color, opacity, dots]) => {
      const points = values.map((v, i) => typeof v === "number" ? [x(i), y(v), i, v] : null)
        .filter(p => p);
      s.append(line(points.map(p => p[0] + "," + p[1]), { stroke: color, opacity }));
      if (dots) points.forEach(p => s.append(svg("circle",
        { cx: p[0], cy: p[1], r: 2.5, fill: color, opacity }, `${names[p[2]]}: ${name} ${num(p[3])}`)));
    });
    label(s, 40, 180, names[0]);
    label(s, 690, 180, names[n - 1], "end");
  }, 700, 185);
}

// ---- sections

function summary() {
  add(page, el("h1", `${R.net} in INT8`));
  const level = (/: (good|fair|poor)\./.exec(R.judgement) || [])[1] || "";
  add(page, el("p", R.judgement, { class: "judge " + level, id: "judgement" }));
  const cards = el("div", null, { class: "cards" });
  const card = (name, value, more) => add(cards, add(el("div", name, { class: "card" }),
    el("b", value), el("span", more, { class: "dim" })));
  for (const s of R.accuracy) {
    const o = s.outputs[0], near = o ? db(o.sample_sqnr) + " dB" : "";
    if (s.top1 !== null) card(s.model, percent(s.top1), "top-1" + (o ? ", " + near : ""));
    else card(s.model, near || "–", o ? "of float's outputs" : `${s.samples} samples`);
  }
  const macs = sum(R.rows, r => r.macs), int8 = sum(R.rows, r => r.quantized ? r.macs : 0);
  const floats = 4 * sum(R.rows, r => r.weights);
  const bytes = sum(R.rows, r => r.weights * (r.quantized ? 1 : 4));
  if (macs) card("MACs in INT8", num(100 * int8 / macs, 1) + " %", `of ${big(macs)} a sample`);
  if (floats) card("Weights", big(bytes) + "B", `were ${big(floats)}B`);
  add(page, cards);
  list("Warnings", R.warnings, "bad");
}

function layerTable() {
  section("Layers", "layers-title");
  const filter = el("input", null,
    { placeholder: "filter by name or type", "aria-label": "filter layers", id: "filter" });
  const kind = el("select", null, { "aria-label": "which layers", id: "which" });
  const kinds = { cost: "layers that cost", int8: "in INT8", float: "in float", all: "all layers" };
  for (const [value, text] of Object.entries(kinds)) add(kind, el("option", text, { value }));
  add(page, add(el("p"), filter, document.createTextNode(" "), kind));
  const measured = R.rows.some(r => !missing(r.alone));
  // name, value to sort by, text; the last of those that float layers have not
  const columns = [
    ["layer", r => r.layer],
    ["type", r => r.type],
    ["adds dB", r => r.sqnr, r => db(r.sqnr)],
    ["net dB", r => r.net, r => db(r.net)],
    ...(measured ? [["whole net dB", r => r.alone, r => db(r.alone)]] : []),
    ["clipped %", r => r.clipped, r => num(r.clipped, 3)],
    ["scale", r => r.scale, r => r.scale.toPrecision(4)],
    ["offset", r => r.offset, r => r.offset],
    ["MACs", r => r.macs],
    ["weights", r => r.weights],
  ];
  const head = el("tr"), body = el("tbody"), table = el("table", null, { id: "layers" });
  let order = 0, up = 1;
  columns.forEach(([name], i) => {
    const button = el("button", name, { type: "button" });
    button.onclick = () => { up = order === i ? -up : 1; order = i; draw(); };
    add(head, add(el("th", null, { class: i < 2 ? "left" : "" }), button));
  });
  add(table, add(el("thead"), head), body);
  add(page, add(el("div", null, { class: "scroll tall" }), table));
  const words = "adds: SQNR at its output with it alone quantized; net: with all before it" +
    (measured ? "; whole net: of the net's outputs, with it alone quantized" : "") +
    ". A click on a layer shows its data, search and weights.";
  add(page, el("p", words, { class: "dim" }));
  if (!measured) add(page, el("p",
    "[output] sensitivity = true measures what the whole net loses by each layer.", { class: "dim" }));

  const cost = r => r.quantized || r.macs || r.weights || r.cure;
  const hidden = R.rows.filter(r => !cost(r)).length;
  if (hidden) add(page, el("p",
    `${hidden} layers without weights or MACs, as ReLU and inputs, are not shown at first.`,
    { class: "dim" }));
  const rank = v => v === "inf" ? Infinity : v;

  function draw() {
    const text = filter.value.toLowerCase(), of = columns[order][1];
    const wanted = { cost, int8: r => r.quantized, float: r => !r.quantized, all: () => true };
    let rows = R.rows.filter(r => wanted[kind.value](r) &&
      (r.layer + " " + r.type).toLowerCase().includes(text));
    if (order || up < 0) rows = [...rows].sort((a, b) => {
      const x = rank(of(a)), y = rank(of(b));
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return (x > y ? 1 : x < y ? -1 : 0) * up;
    });
    body.replaceChildren(...rows.map(row));
  }
  function row(r) {
    const tr = el("tr", null, { class: "layer", tabindex: 0, "data-layer": r.layer });
    add(tr, el("td", r.layer), el("td", r.type, { class: "left" }));
    const own = columns.filter(c => c[2]);
    if (r.quantized) own.forEach(c => add(tr, el("td", c[2](r))));
    else add(tr, el("td", `in float: ${r.reason}${r.cure ? " – " + r.cure : ""}`,
      { class: "wrap dim", colspan: own.length }));
    add(tr, el("td", r.macs ? big(r.macs) : ""), el("td", r.weights ? big(r.weights) : ""));
    tr.onclick = () => toggle(tr, r);
    tr.onkeydown = e => { if (e.key === "Enter") toggle(tr, r); };
    return tr;
  }
  function toggle(tr, r) {
    if (tr.nextSibling && tr.nextSibling.className === "detail") return tr.nextSibling.remove();
    const held = el("div", null, { class: "held" });
    const cell = add(el("td", null, { colspan: columns.length }), held);
    details(held, r);
    tr.after(add(el("tr", null, { class: "detail" }), cell));
  }
  filter.oninput = draw;
  kind.onchange = draw;
  draw();
}

function details(place, r) {
  const d = R.details[r.layer], lines = [];
  if (r.absorbed.length) lines.push(`With ${r.absorbed.join(", ")} folded in.`);
  if (d && !missing(d.before)) lines.push(
    `Rounding error at its output, all layers before it corrected: ${db(d.before)} dB before ` +
    `its own corrections, ${db(d.after)} dB behind them.`);
  if (!missing(r.alone)) lines.push(
    `The net's outputs keep ${db(r.alone)} dB with this layer alone quantized ` +
    `(weights ${db(r.weights_only)}, data ${db(r.data_only)}), and ${db(r.without)} dB with all but it.`);
  if (!d) lines.push(r.quantized ? "Its data was not observed in this run." : `In float: ${r.reason}.`);
  add(place, ...lines.map(text => el("p", text)));
  if (d) add(place, add(el("div", null, { class: "plots" }),
    histogram(d), search(d), winners(d), weights(d)));
}

function depth() {
  const rows = R.rows.filter(r => r.quantized && typeof r.net === "number");
  if (rows.length < 2) return;
  section("Error through the net");
  add(page, curves("dB at each quantized layer's output: with all before it, and (dim) what it adds alone",
    rows.map(r => r.layer),
    [["adds", rows.map(r => r.sqnr), "currentColor", .35, true],
     ["with all before it", rows.map(r => r.net), "var(--accent)", 1, true]]));
}

function sensitivity() {
  const rows = R.rows.filter(r => typeof r.alone === "number");
  if (!rows.length) return;
  section("What the whole net loses by each layer");
  const order = [...rows].sort((a, b) => a.alone - b.alone);
  add(page, curves("dB of the net's outputs with one layer quantized, the worst first: all of it, " +
    "(green) its weights alone, (red) its data alone",
    order.map(r => r.layer),
    [["weights", order.map(r => r.weights_only), "var(--good)", .7, true],
     ["data", order.map(r => r.data_only), "var(--bad)", .7, true],
     ["all", order.map(r => r.alone), "var(--accent)", 1, true]]));
}

function training() {
  const t = R.training;
  if (!t || !t.points.iteration || t.points.iteration.length < 2) return;
  section("Training");
  const at = t.points.iteration.map(i => "iteration " + i);
  add(page, curves("Loss of the training batches", at,
    [["loss", t.points.loss, "var(--accent)", 1]]));
  if (t.points.metric.filter(v => v !== null).length > 1) add(page, curves(
    `Tests: ${t.metric}` + (missing(t.best) ? "" : `; the state at iteration ${t.best} was kept`), at,
    [[t.metric, t.points.metric, "var(--accent)", 1, true]]));
}

function accuracy() {
  const ranks = R.accuracy.some(s => s.top1 !== null) ? ["top1", "top5"] : [];
  grid("Accuracy", ["model", "output", "cosine", "dB", "mean dB", ...ranks.map(r => r.replace("p", "p-") + " %")],
    R.accuracy.flatMap(s => (s.outputs.length ? s.outputs : [{}]).map((o, i) => [
      i ? "" : s.model, o.blob || "", num(o.cosine, 6), db(o.sqnr), db(o.sample_sqnr),
      ...ranks.map(r => i ? "" : num(s[r]))])));
  const names = [...new Set(R.accuracy.flatMap(s => Object.keys(s.metrics)))];
  if (names.length) grid("Metrics", ["model", ...names],
    R.accuracy.map(s => [s.model, ...names.map(n => num(s.metrics[n], 4))]));
  grid("Detections", ["model", "output", "boxes", "in float", "IoU 0.5 %", "IoU 0.75 %", "score off by"],
    R.accuracy.flatMap(s => s.detections.map(d => [
      s.model, d.blob, d.boxes, d.float_boxes, missing(d.matched_50) ? "" : num(100 * d.matched_50, 1),
      missing(d.matched_75) ? "" : num(100 * d.matched_75, 1), num(d.score_error, 4)])));
}

function steps() {
  grid("Steps of effort " + R.effort, ["step", "mean dB", ""],
    R.trials.map(t => [t.step, db(t.sqnr), t.kept ? "" : "undone"]));
  if (R.fallback) grid("Fallback", ["layers in float", "number", "metric", ""],
    R.fallback.trials.map(t => [t.what, t.in_float.length, num(t.value), t.reached ? "enough" : ""]));
  if (R.nuq) grid("Weights of few values", ["layer", "values", "int8 bytes", "coded before", "coded"],
    R.nuq.layers.map(x => [x.layer, x.levels, x.weights, x.coded_before, x.coded]));
  if (!R.sensitive.length) return;
  section("To paste into the config");
  const names = R.sensitive.map(n => JSON.stringify(n)).join(", ");
  const why = R.rows.some(r => !missing(r.alone)) ? "The net loses most by these layers" :
    "These layers add most error";
  add(page, el("p", why + "; in float they would add none:"),
    el("pre", `skip_layers = [${names}]`));
}

function data() {
  if (!R.data) return;
  grid(`Data: ${R.data.names.length} samples, ${R.data.choice}`,
    ["input", "size", "channel", "min", "max", "mean", "deviation"],
    R.data.inputs.flatMap(s => s.channels.map((c, i) => [
      i ? "" : s.blob, i ? "" : s.shape.join("×"), i,
      ...[c.low, c.high, c.mean, c.deviation].map(v => num(v, 4))])));
  const thumbs = R.data.thumbnails || [];
  if (!thumbs.length) return;
  add(page, el("p", "As the net sees them, least value black, greatest white:", { class: "dim" }));
  add(page, add(el("div", null, { class: "thumbs" }), ...thumbs.map(t =>
    el("img", null, { src: "data:image/png;base64," + t, alt: "a sample as the net sees it" }))));
}

function made() {
  const about = R.about, machine = about.machine;
  section("Made by");
  const parts = [`${about.product} on ${machine.processor}, ${machine.device}`,
    num(sum(Object.values(R.seconds), v => v), 1) + " s",
    `at most ${big(about.peak_memory_bytes)}B of memory`];
  add(page, el("p", parts.join("; ") + ".", { class: "dim" }));
  grid("", ["stage", "seconds"], Object.entries(R.seconds).map(([k, v]) => [k, num(v, 2)]));
  add(page, el("p", "Config, hashes of the inputs, machine:", { class: "dim" }),
    el("pre", JSON.stringify(about, null, 1)));
}

function contents() {
  const links = [...page.querySelectorAll("h2")].map(h =>
    el("a", h.textContent.split(":")[0], { href: "#" + h.id }));
  page.querySelector(".cards").after(add(el("nav", null, { "aria-label": "contents" }), ...links));
}

summary();
depth();
layerTable();
sensitivity();
accuracy();
training();
steps();
data();
list("Notes", R.notes);
made();
contents();
