"use strict";
// Rows are in the document; what lies behind each is drawn from the JSON when it is opened.
const DATA = JSON.parse(document.getElementById("data").textContent);
const GROUPS = { "agrees": ["matched", "exact", "holds", "beaten"], "differs": ["short", "fails", "off"],
  "no verdict": ["deviates", "too few seeds", "too noisy", "undecided"], "not run": ["not run"] };
const RANK = Object.values(GROUPS).flat();
const groupOf = kind => Object.keys(GROUPS).find(name => GROUPS[name].includes(kind));
const css = name => name.replaceAll(" ", "-");
const $ = (selector, from = document) => from.querySelector(selector);
const all = (selector, from = document) => [...from.querySelectorAll(selector)];
const rows = all(".row").map((element, order) => ({ element, order, id: element.id, kind: element.dataset.k,
  paper: element.id.split("/")[0], reach: element.dataset.r || "open", devices: (element.dataset.d || "").split(" "),
  gap: element.dataset.g === undefined ? null : +element.dataset.g, seconds: +(element.dataset.s || -1), n: +element.cells[3].textContent || 0,
  text: (element.textContent + " " + (DATA.claims[element.id].metric || "")).toLowerCase() }));
const byId = new Map(rows.map(row => [row.id, row]));

// ---- small helpers

function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter(child => child !== null && child !== undefined));
  return made;
}
const list = items => node("ul", {}, ...items.map(item => node("li", {}, item)));
const number = (x, digits = 5) => Math.abs(x) >= 1e5 ? x.toLocaleString("en", { maximumFractionDigits: 0 }) : String(+x.toPrecision(digits));
function duration(s) { return s < 90 ? (s >= 10 ? s.toFixed(0) : s.toFixed(1)) + " s" : s < 5400 ? (s / 60).toFixed(1) + " min" : s < 172800 ? (s / 3600).toFixed(1) + " h" : (s / 86400).toFixed(1) + " days"; }
const escape = text => String(text).replace(/[&<>"]/g, c => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

function ticks(low, high, wanted = 4) {
  const raw = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(raw)), unit = [1, 2, 5, 10].find(u => u * power >= raw) * power, found = [];
  for (let i = Math.ceil(low / unit - 1e-9); i * unit <= high + unit * 1e-9; i++) found.push(+(i * unit).toPrecision(12));
  return found;
}

// ---- pictures of one claim: dots of the seeds, learning curves

function dots(claim) {
  const sides = claim.sides.filter(side => side.values.length);
  if (!sides.length || claim.kind === "count") return null;
  const points = sides.flatMap(side => side.values).concat(claim.kind === "trend" ? [] : [claim.interval || [], claim.value ?? [], claim.range || []].flat());
  let low = Math.min(...points), high = Math.max(...points);
  const room = (high - low || Math.abs(high) || 1) * .06; low -= room; high += room;
  const left = sides.length > 1 ? 130 : 12, width = 440, line = 30, top = 10, base = top + line * sides.length;
  const x = value => left + (value - low) / (high - low) * (width - left - 14);
  let out = `<line class="axis" x1="${left}" x2="${width - 14}" y1="${base}" y2="${base}"/>`;
  for (const tick of ticks(low, high)) out += `<line class="axis" x1="${x(tick)}" x2="${x(tick)}" y1="${base}" y2="${base + 4}"/><text x="${x(tick)}" y="${base + 16}" text-anchor="middle">${number(tick)}</text>`;
  if (claim.kind !== "trend" && claim.interval) out += `<rect class="ival" x="${x(claim.interval[0])}" width="${x(claim.interval[1]) - x(claim.interval[0])}" y="${top}" height="${base - top}"/>`;
  if (claim.range) out += `<rect class="band" x="${x(claim.range[0])}" width="${x(claim.range[1]) - x(claim.range[0])}" y="${top}" height="${base - top}"/>`;
  sides.forEach((side, i) => {
    const y = top + line * (i + .5);
    if (sides.length > 1) out += `<text x="${left - 8}" y="${y + 4}" text-anchor="end">${escape(side.label.length > 20 ? side.label.slice(0, 19) + "…" : side.label)}</text>`;
    side.values.forEach((value, j) => { out += `<circle class="dot" cx="${x(value).toFixed(1)}" cy="${(y + (j % 5 - 2) * (side.values.length > 4 ? 3 : 0)).toFixed(1)}" r="3.6"/>`; });
    if (side.mean !== undefined && side.mean !== null) out += `<line class="mean" x1="${x(side.mean)}" x2="${x(side.mean)}" y1="${y - 11}" y2="${y + 11}"/>`;
  });
  const reported = claim.kind !== "trend" && claim.value !== undefined && claim.value !== null;
  if (reported) out += `<line class="rep" x1="${x(claim.value)}" x2="${x(claim.value)}" y1="${top - 6}" y2="${base}"/>`;
  const seeds = [...new Set(sides.map(side => `${side.values.length < side.n ? `${side.values.length} of ` : ""}${side.n} runs`))];
  const said = `Dots: ${seeds.join(" and ")}${seeds.length === 1 && sides.length > 1 ? " each" : ""}; bar: their mean` + (reported ? "; dashed: reported" : "") + (claim.interval && claim.kind !== "trend" ? "; shaded: 95 % interval of what the authors would have printed" : "") + (claim.range ? "; grey: the range the paper gives" : "") + ".";
  return figure(width, base + 22, out, `${sides.map(side => `${side.label}: mean ${number(side.mean)} of ${side.n} runs`).join("; ")}${reported ? `; reported ${claim.value}` : ""}`, said);
}

function curves(claim, label, found) {
  const width = 440, height = 210, left = 58, right = 12, top = 12, bottom = 34;
  const xs = found.x.flat(), ys = found.y.flat(), target = found.metric === claim.metric && claim.kind === "value" ? claim.value : null;
  let [x0, x1, y0, y1] = [Math.min(...xs), Math.max(...xs), Math.min(...ys, target ?? Infinity), Math.max(...ys, target ?? -Infinity)];
  const logarithmic = y0 > 0 && y1 / y0 > 60, scale = logarithmic ? Math.log10 : v => v;
  if (y1 === y0) { y0 -= Math.abs(y0) * .1 || 1; y1 += Math.abs(y1) * .1 || 1; }
  const x = v => left + (v - x0) / (x1 - x0 || 1) * (width - left - right), y = v => top + (scale(y1) - scale(v)) / (scale(y1) - scale(y0)) * (height - top - bottom);
  let out = "";
  const marks = logarithmic ? ticks(Math.log10(y0), Math.log10(y1), 3).filter(Number.isInteger).map(e => 10 ** e) : ticks(y0, y1);
  for (const tick of marks.length ? marks : [y0, y1]) out += `<line class="grid" x1="${left}" x2="${width - right}" y1="${y(tick)}" y2="${y(tick)}"/><text x="${left - 6}" y="${y(tick) + 4}" text-anchor="end">${number(tick, 3)}</text>`;
  for (const tick of ticks(x0, x1)) out += `<text x="${x(tick)}" y="${height - bottom + 15}" text-anchor="${x(tick) > width - right - 14 ? "end" : "middle"}">${tick >= 1e6 ? tick / 1e6 + "M" : tick >= 1e4 ? tick / 1000 + "k" : number(tick, 4)}</text>`;
  out += `<line class="axis" x1="${left}" x2="${width - right}" y1="${height - bottom}" y2="${height - bottom}"/><text x="${(left + width - right) / 2}" y="${height - 4}" text-anchor="middle">${escape(found.axis)}</text>`;
  found.y.forEach((line, i) => { const at = found.x.length === 1 ? found.x[0] : found.x[i]; out += `<path class="curve" d="M${line.map((v, j) => `${x(at[j]).toFixed(1)} ${y(v).toFixed(1)}`).join("L")}"/>`; });
  if (target !== null && target !== undefined) out += `<line class="rep" x1="${left}" x2="${width - right}" y1="${y(target)}" y2="${y(target)}"/>`;
  const shown = found.seeds.length < found.runs ? `${found.seeds.length} of ${found.runs} seeds drawn` : found.runs === 1 ? "one seed" : `all ${found.runs} seeds`;
  return figure(width, height, out, `${found.metric} of ${found.seeds.length} runs over ${found.axis} ${number(x0)} to ${number(x1)}, between ${number(y0)} and ${number(y1)}`,
    `${label === "ours" ? "" : label + ": "}${found.metric}, ${shown}${found.y.some(line => line.length >= DATA.points) ? `, thinned to ${DATA.points} points` : ""}${logarithmic ? ", logarithmic" : ""}${target !== null && target !== undefined ? "; dashed: reported" : ""}.`);
}

function figure(width, height, inside, alternative, caption) {
  const made = node("figure");
  made.innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escape(alternative)}">${inside}</svg>`;
  made.append(node("figcaption", {}, caption));
  return made;
}

// ---- what lies behind a row

function detail(row) {
  const claim = DATA.claims[row.id], text = DATA.texts, facts = node("dl"), left = node("div"), right = node("div");
  const fact = (name, ...value) => { if (value.some(v => v)) facts.append(node("dt", {}, name), node("dd", {}, ...value)); };
  fact("Metric", claim.metric, claim.better ? ` (${claim.better} is better)` : "", claim.runs ? `; the paper's mean of ${claim.runs} runs` : "");
  for (const side of claim.sides || []) if (side.n) fact(claim.sides.length > 1 ? side.label : "Ours", `${number(side.mean)}`, side.sd !== undefined && side.sd !== null ? ` ± ${number(side.sd)} (sd over ${side.n} runs)` : "", side.failed ? `; ${side.failed} failed` : "");
  if (claim.interval) fact(claim.kind === "trend" ? "Difference" : "Interval", `${number(claim.interval[0])} to ${number(claim.interval[1])} (95 %)`);
  if (claim.gap !== undefined) fact("Gap", `${number(claim.gap, 3)} × the ${claim.basis}`);
  if (claim.kind !== "count") fact("Seeds", `${row.n} of ${claim.asked} asked`);
  if (claim.seconds !== undefined) fact("Cost", `${duration(claim.seconds)}, ${duration(claim.per)} a run; ${claim.devices.map(i => DATA.devices[i]).join("; ")}; at most ${claim.memory.toLocaleString("en")} MiB`);
  else if (claim.minutes) fact("Estimated cost", [claim.minutes[0] && `${duration(claim.minutes[0] * 60)} on two CPU cores`, claim.minutes[1] && `${duration(claim.minutes[1] * 60)} on one GPU`].filter(Boolean).join(", "));
  fact("Data", claim.reach === "gated" ? "gated: behind a licence, or too large to have been here" : "");
  fact("Hardware", claim.hardware || "");
  if (claim.commits) fact("Source", "commit " + claim.commits.join(", "));
  left.append(facts);
  const part = (name, items) => { if (items && items.length) left.append(node("h4", {}, name), list(items)); };
  const deviations = (claim.deviations || []).map(i => text[i]), unsaid = deviations.filter(line => line.startsWith("unsaid: ")).map(line => line.slice(8));
  const folded = (name, items) => { if (items.length) left.append(node("details", {}, node("summary", {}, `${name} (${items.length})`), list(items))); };
  part("Deviations from the paper", deviations.filter(line => !line.startsWith("unsaid: ")));
  folded(deviations.length > unsaid.length ? "Also deviations: what the paper leaves unsaid, where the choice may move the number" : "Deviations: what the paper leaves unsaid, where the choice may move the number", unsaid);
  part("Notes", [...(claim.note !== undefined ? [text[claim.note]] : []), ...(claim.notes || []), ...(claim.source !== undefined ? ["Source of the reported value: " + text[claim.source]] : [])]);
  part("Corrected", claim.history);
  folded("Left unsaid by the paper, and shown not to move the number", (claim.assumptions || []).map(i => text[i]));
  const command = claim.command || `repro claim ${row.id} --fresh`, copy = node("button", { type: "button" }, "Copy");
  copy.addEventListener("click", () => copyText(command, copy));
  left.append(node("div", { class: "cmd" }, node("code", {}, ...command.split(/ (?=--)/).flatMap((part, i) => i ? [" ", node("span", { class: "flag" }, part)] : [part])), copy));
  const links = node("p", {}, node("a", { href: "#" + row.id }, "Link to this claim"));
  for (const preset of claim.pictured || []) links.append(" · ", node("a", { href: `#${row.paper}:${preset}` }, `pictures of ${preset}`));
  left.append(links);
  if (claim.sides) right.append(...[dots(claim)].filter(Boolean));
  const drawn = (claim.curves || []).filter(([, at]) => DATA.curves[at].seeds.length).map(([label, at]) => curves(claim, label, DATA.curves[at]));
  right.append(...drawn.slice(0, 2));
  if (drawn.length > 2) right.append(node("details", {}, node("summary", {}, `Learning curves of ${drawn.length - 2} more`), ...drawn.slice(2)));
  const cell = node("td", { colspan: 6, role: "cell" }, node("div", { class: right.childElementCount ? "cols" : "" }, left, ...(right.childElementCount ? [right] : [])));
  return node("tr", { class: "detail", role: "row" }, cell);
}

async function copyText(text, button) {
  try { await navigator.clipboard.writeText(text); } catch {
    const area = node("textarea"); area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
  }
  button.textContent = "Copied"; setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function toggle(row, open = !row.detail) {
  if (open === Boolean(row.detail)) return;
  if (open) { row.detail = detail(row); row.element.after(row.detail); } else { row.detail.remove(); row.detail = null; }
  row.element.toggleAttribute("data-open", open);
  $(".open", row.element).setAttribute("aria-expanded", open);
}

document.addEventListener("click", event => {
  const element = event.target.closest(".row");
  if (element && !event.target.closest("a") && !String(getSelection())) toggle(byId.get(element.id));
});
document.addEventListener("keydown", event => { // arrows go from row to row, Escape closes
  const button = event.target.closest && event.target.closest(".open");
  if (!button) return;
  const row = byId.get(button.closest(".row").id);
  if (event.key === "Escape") toggle(row, false);
  const shown = all(".open").filter(other => other.checkVisibility()), at = shown.indexOf(button);
  const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: shown.length - 1 }[event.key];
  if (to !== undefined && shown[to]) { event.preventDefault(); shown[to].focus(); }
});

// ---- filters and sorting

const form = $("#filters"), filters = form.elements, papers = all(".paper");
let filtered = false;

function fits(row, wanted) {
  return (!wanted.paper || row.paper === wanted.paper) && (!wanted.reach || row.reach === wanted.reach)
    && (!wanted.verdict || (GROUPS[wanted.verdict] || [wanted.verdict]).includes(row.kind))
    && (!wanted.device || row.devices.includes(wanted.device)) && wanted.words.every(word => row.text.includes(word));
}
const wantedNow = () => ({ paper: filters.paper.value, verdict: filters.verdict.value, reach: filters.reach.value, device: filters.device.value, words: filters.q.value.toLowerCase().split(/\s+/).filter(Boolean) });

function apply(remember = true) {
  const wanted = wantedNow(), active = Object.values(wanted).flat().some(Boolean), shown = new Set();
  let found = 0;
  for (const row of rows) {
    const fit = fits(row, wanted);
    row.element.hidden = !fit; row.fit = fit;
    if (row.detail) row.detail.hidden = !fit;
    if (fit) { found++; shown.add(row.paper); }
  }
  for (const table of all("table.claims")) {
    const hidden = !$(".row:not([hidden])", table); table.hidden = hidden;
    const rest = table.closest(".rest");
    if (rest) { rest.hidden = hidden; if (active !== filtered || active) rest.open = active && !hidden; }
  }
  for (const paper of papers) {
    paper.hidden = !shown.has(paper.id);
    if (active) paper.open = shown.has(paper.id) && (found <= 150 || Boolean(wanted.paper)); else if (filtered) paper.open = false;
  }
  filtered = active;
  $("#found").textContent = active ? `${found} of ${rows.length} claims in ${shown.size} paper${shown.size === 1 ? "" : "s"}` : "";
  $("#none").hidden = found > 0;
  for (const tile of all(".tile")) tile.setAttribute("aria-pressed", tile.dataset.group === wanted.verdict);
  if (remember) {
    const query = new URLSearchParams(["q", "paper", "verdict", "reach", "device", "sort"].map(name => [name, filters[name].value]).filter(([name, value]) => value && !(name === "sort" && value === "order")));
    history.replaceState(null, "", "#" + (String(query) ? "?" + query : view));
  }
  if (view === "scatter") scatter();
}

function sort() {
  const by = filters.sort.value, key = { order: row => row.order, verdict: row => RANK.indexOf(row.kind), gap: row => row.gap === null ? Infinity : -Math.abs(row.gap), n: row => -row.n, cost: row => row.seconds < 0 ? Infinity : row.seconds }[by];
  const sorted = [...rows].sort((a, b) => key(a) - key(b) || a.order - b.order), bodies = new Map();
  for (const row of sorted) { const body = row.element.parentElement; if (!bodies.has(body)) bodies.set(body, []); bodies.get(body).push(row.element, ...(row.detail ? [row.detail] : [])); }
  for (const [body, elements] of bodies) body.append(...elements);
  for (const button of all(".sort")) button.setAttribute("aria-pressed", button.dataset.sort === by);
}

let waiting = 0;
form.addEventListener("input", event => { clearTimeout(waiting); if (event.target.name === "sort") sort(); waiting = setTimeout(apply, event.target.name === "q" ? 120 : 0); });
form.addEventListener("submit", event => event.preventDefault());
form.addEventListener("reset", () => setTimeout(() => { sort(); apply(); }));
$("#clear").addEventListener("click", () => form.reset());
for (const button of all(".sort")) button.addEventListener("click", () => { filters.sort.value = button.dataset.sort; sort(); apply(); });
for (const tile of all(".tile")) tile.addEventListener("click", () => { filters.verdict.value = filters.verdict.value === tile.dataset.group ? "" : tile.dataset.group; show(view === "scatter" ? "scatter" : "papers"); apply(); });

// ---- views and deep links: #view, #?filters, #paper, #paper/where/which, #paper:preset (its pictures)

const VIEWS = ["papers", "scatter", "next", "speed", "verdicts"].filter(name => document.getElementById(name));
let view = "papers";

function show(name) {
  view = name;
  for (const section of all(".view")) section.hidden = section.id !== "view-" + name;
  for (const link of all("nav a")) { if (link.hash === "#" + name) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current"); }
  form.hidden = !["papers", "scatter"].includes(name);
  if (name === "scatter") scatter();
  if (name === "next") next();
}

function go() {
  const target = decodeURIComponent(location.hash.slice(1));
  for (const element of all(".row.at")) element.classList.remove("at");
  if (target.startsWith("?")) {
    const query = new URLSearchParams(target.slice(1));
    for (const name of ["q", "paper", "verdict", "reach", "device", "sort"]) { filters[name].value = query.get(name) || (name === "sort" ? "order" : ""); if (filters[name].selectedIndex === -1) filters[name].selectedIndex = 0; }
    show("papers"); sort(); apply(false);
    return;
  }
  if (!target || VIEWS.includes(target)) { show(target || "papers"); apply(false); if (target) $("nav").scrollIntoView(); return; }
  const element = document.getElementById(target);
  if (!element) { show("papers"); $("#found").textContent = `There is no ${target} on this page.`; return; }
  show("papers");
  const row = byId.get(target);
  if (element.closest("[hidden]")) { form.reset(); for (const name of ["q", "paper", "verdict", "reach", "device"]) filters[name].value = ""; apply(false); }
  for (let parent = element; parent; parent = parent.parentElement) if (parent.tagName === "DETAILS") parent.open = true;
  if (row) { toggle(row, true); element.classList.add("at"); $(".open", element).focus({ preventScroll: true }); }
  element.scrollIntoView();
}
addEventListener("hashchange", go);

// ---- all claims as dots

const tip = node("div", { id: "tip", hidden: "", "aria-hidden": "true" });
document.body.append(tip);
function pointed(host) {
  host.onmousemove = event => {
    const id = event.target.dataset && event.target.dataset.id; tip.hidden = !id;
    if (!id) return;
    const row = byId.get(id), cells = row.element.cells;
    tip.textContent = `${id}: reported ${cells[1].textContent.trim()}, ours ${cells[2].textContent.trim()} (${cells[4].textContent.trim()})`;
    tip.style.left = Math.min(event.clientX + 12, innerWidth - 330) + "px"; tip.style.top = event.clientY + 14 + "px";
  };
  host.onmouseleave = () => { tip.hidden = true; };
  host.onclick = event => { const id = event.target.dataset && event.target.dataset.id; if (id) { tip.hidden = true; location.hash = id; } };
}

function scatter() {
  const size = innerWidth < 640 ? 360 : 520, edge = 52, unit = $("#unit").value, points = [];
  let out = "", left = 0;
  for (const row of rows) {
    const claim = DATA.claims[row.id];
    if (!row.fit || claim.mean === undefined || claim.value === undefined || (unit && claim.unit !== unit)) continue;
    if (unit) points.push([claim.value, claim.mean, row]);
    else if (claim.value * claim.mean > 0) points.push([Math.log10(Math.abs(claim.value)), Math.log10(Math.abs(claim.mean)), row]);
    else left++;
  }
  const ends = points.length ? points.flatMap(point => point.slice(0, 2)) : [0, 1];
  let low = Math.min(...ends), high = Math.max(...ends);
  const room = (high - low || 1) * .04; low -= room; high += room;
  const at = v => edge + (v - low) / (high - low) * (size - edge - 14), up = v => size - at(v);
  for (const tick of unit ? ticks(low, high, 5) : ticks(low, high, 7).filter(Number.isInteger)) {
    const label = unit ? number(tick) : Math.abs(tick) <= 4 ? String(+(10 ** tick).toPrecision(3)) : `1e${tick}`;
    out += `<line class="grid" x1="${at(tick)}" x2="${at(tick)}" y1="14" y2="${size - edge}"/><line class="grid" x1="${edge}" x2="${size - 14}" y1="${up(tick)}" y2="${up(tick)}"/><text x="${at(tick)}" y="${size - edge + 16}" text-anchor="middle">${label}</text><text x="${edge - 6}" y="${up(tick) + 4}" text-anchor="end">${label}</text>`;
  }
  out += `<line class="axis" x1="${at(low)}" y1="${up(low)}" x2="${at(high)}" y2="${up(high)}"/><text x="${size / 2}" y="${size - 10}" text-anchor="middle">reported${escape(unit && ", " + unit)}</text><text transform="translate(12 ${size / 2}) rotate(-90)" text-anchor="middle">ours</text>`;
  points.sort((a, b) => RANK.indexOf(b[2].kind) - RANK.indexOf(a[2].kind));
  for (const [x, y, row] of points) out += `<circle class="pt ${css(groupOf(row.kind))}" data-id="${escape(row.id)}" cx="${at(x).toFixed(1)}" cy="${up(y).toFixed(1)}" r="4.5"/>`;
  $("#plot-log").innerHTML = `<svg viewBox="0 0 ${size} ${size}" role="img" aria-label="${points.length} claims: reported value across, ours upwards${unit ? "" : ", both logarithmic"}">${out}</svg>`;
  $("#plot-log-said").textContent = `${points.length} claims. On the diagonal the two numbers are the same.` + (unit ? "" : " Both axes are logarithmic, so that a unit only moves a dot along the diagonal, and its distance from it is a ratio.") + (left ? ` ${left} claims with a zero or a change of sign are left out.` : "");
  pointed($("#plot-log"));
  gaps();
}

function gaps() {
  const found = rows.filter(row => row.fit && row.gap !== null), names = [...new Set(found.map(row => row.paper))], width = innerWidth < 640 ? 360 : 520, left = 92, line = 26, top = 8, base = top + line * names.length;
  const squash = v => Math.sign(v) * (Math.abs(v) <= 1 ? Math.abs(v) : 1 + Math.log10(Math.abs(v)));
  const signed = row => squash(DATA.claims[row.id].better === "lower" ? -row.gap : row.gap);
  const most = Math.max(2, ...found.map(row => Math.abs(signed(row)))), x = v => left + (v + most) / (2 * most) * (width - left - 14);
  let out = `<rect class="band" x="${x(-1)}" width="${x(1) - x(-1)}" y="${top}" height="${base - top}"/><line class="axis" x1="${x(0)}" x2="${x(0)}" y1="${top}" y2="${base}"/>`;
  for (let e = -Math.floor(most); e <= most; e++) out += `<text x="${x(e)}" y="${base + 16}" text-anchor="middle">${e === 0 ? 0 : (e < 0 ? "-" : "") + 10 ** (Math.abs(e) - 1)}</text>`;
  names.forEach((name, i) => { out += `<line class="grid" x1="${left}" x2="${width - 14}" y1="${top + line * (i + 1)}" y2="${top + line * (i + 1)}"/><text x="${left - 8}" y="${top + line * (i + .5) + 4}" text-anchor="end">${escape(name)}</text>`; });
  found.forEach((row, i) => { out += `<circle class="pt ${css(groupOf(row.kind))}" data-id="${escape(row.id)}" cx="${x(signed(row)).toFixed(1)}" cy="${(top + line * (names.indexOf(row.paper) + .5) + (i % 3 - 1) * 5).toFixed(1)}" r="4.5"/>`; });
  out += `<text x="${x(-most)}" y="${base + 32}">ours worse</text><text x="${x(most)}" y="${base + 32}" text-anchor="end">ours better</text>`;
  $("#plot-gap").innerHTML = `<svg viewBox="0 0 ${width} ${base + 38}" role="img" aria-label="${found.length} claims of ${names.length} papers: how far ours lies from the reported value">${out}</svg>`;
  pointed($("#plot-gap"));
}

// ---- time and money

function next() {
  const gpu = +$("#gpu-price").value || 0, cpu = +$("#cpu-price").value || 0, items = [];
  for (const row of all(".next tbody tr")) {
    const costs = [row.dataset.cpu && row.dataset.cpu / 60 * cpu, row.dataset.gpu && row.dataset.gpu / 60 * gpu].filter(cost => cost !== "").map(Number);
    const least = Math.min(...costs);
    $(".usd", row).textContent = least < .01 ? "< 0.01" : least < 100 ? least.toFixed(2) : Math.round(least).toLocaleString("en");
    items.push([least, +row.dataset.n]);
  }
  items.sort((a, b) => a[0] - b[0]);
  if (!items.length) return;
  const width = innerWidth < 640 ? 360 : 760, height = 230, left = 46, floor = .001, steps = [];
  let money = 0, claims = 0;
  for (const [cost, count] of items) { money += cost; claims += count; steps.push([Math.max(money, floor), claims]); }
  const x0 = Math.log10(Math.max(floor, steps[0][0])), x1 = Math.max(x0 + 1, Math.log10(money)), x = v => left + (Math.log10(v) - x0) / (x1 - x0) * (width - left - 16), y = v => height - 36 - v / claims * (height - 50);
  let out = "", path = `M${left} ${y(0)}`;
  for (const [spent, settled] of steps) path += `H${x(spent).toFixed(1)}V${y(settled).toFixed(1)}`;
  for (const tick of ticks(0, claims)) out += `<line class="grid" x1="${left}" x2="${width - 16}" y1="${y(tick)}" y2="${y(tick)}"/><text x="${left - 6}" y="${y(tick) + 4}" text-anchor="end">${tick}</text>`;
  for (let e = Math.ceil(x0); e <= x1; e++) out += `<text x="${x(10 ** e)}" y="${height - 20}" text-anchor="middle">${e >= 0 ? 10 ** e : (10 ** e).toFixed(-e)}</text>`;
  out += `<text x="${width / 2}" y="${height - 4}" text-anchor="middle">USD spent, cheapest first (logarithmic)</text><path class="stair" d="${path}"/>`;
  $("#plot-next").innerHTML = `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${claims} claims for ${number(money, 3)} dollars, the cheapest first">${out}</svg><figcaption>Claims that could be settled for so much money: ${claims} in this table, for ${number(money, 3)} USD together.</figcaption>`;
}
for (const input of all(".prices input")) input.addEventListener("input", next);

// Names of views are no places to scroll to: the view comes to the reader.
for (const section of all(".view")) section.id = "view-" + section.id;
$(".skip").hash = "#view-papers";
$(".skip").addEventListener("click", event => { event.preventDefault(); show("papers"); ($(".paper:not([hidden]) > summary") || $("#clear")).focus(); });
for (const row of rows) row.fit = true;
const units = new Map();
for (const row of rows) { const claim = DATA.claims[row.id]; if (claim.mean !== undefined && claim.value !== undefined && claim.unit) units.set(claim.unit, (units.get(claim.unit) || 0) + 1); }
for (const [unit, count] of [...units].sort((a, b) => b[1] - a[1])) if (count > 2) $("#unit").append(node("option", { value: unit }, `${unit} (${count})`));
$("#unit").addEventListener("input", scatter);
$("#more").addEventListener("click", event => { form.classList.toggle("all"); event.target.setAttribute("aria-expanded", form.classList.contains("all")); });
form.hidden = false;
go();
