"use strict";
// Draws what /api/frames tells, once a second. A frame is one look at the cluster; frames are kept as long as the server keeps them.

const KEPT = 600;
const SHOWN = 120;
const frames = [];
const stageColours = ["--s0", "--s1", "--s2", "--s3", "--s4"];
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const rate = (n) => (n >= 100 ? n.toFixed(0) : n.toFixed(1));
const whole = (n) => n.toLocaleString("en");
const percent = (share) => (share == null ? "–" : (100 * share).toFixed(share > 0.995 && share < 1 ? 2 : 1) + " %");
const time = (us) => (us == null ? "–" : us < 1000 ? us + " µs" : us < 1e6 ? (us / 1000).toFixed(1) + " ms" : (us / 1e6).toFixed(2) + " s");

/// The last seconds, the newest last: the frame of each, or nothing where nobody looked.
function shown() {
  const seconds = new Array(SHOWN).fill(undefined);
  const now = frames[frames.length - 1].t;
  for (const frame of frames) {
    const ago = Math.round((now - frame.t) / 1000);
    if (ago < SHOWN) seconds[SHOWN - 1 - ago] = frame;
  }
  return seconds;
}

function of(frame, endpoint) {
  return frame && (frame.endpoints || []).find((known) => known.name === endpoint);
}

function prepare(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * ratio)) canvas.width = Math.round(width * ratio);
  if (canvas.height !== Math.round(height * ratio)) canvas.height = Math.round(height * ratio);
  const to = canvas.getContext("2d");
  to.setTransform(ratio, 0, 0, ratio, 0, 0);
  to.clearRect(0, 0, width, height);
  return { to, width, height };
}

function lines(canvas, series) {
  const { to, width, height } = prepare(canvas);
  const top = Math.max(1e-9, ...series.flatMap((line) => line.values.filter((value) => value != null)));
  for (const { values, of } of series) {
    to.strokeStyle = colour(of);
    to.lineWidth = 1.6;
    to.beginPath();
    let down = false;
    values.forEach((value, i) => {
      if (value == null) return;
      const x = width * (i + 0.5) / SHOWN, y = height - 2 - (height - 6) * value / top;
      if (down) to.lineTo(x, y); else to.moveTo(x, y);
      down = true;
    });
    to.stroke();
  }
  return top;
}

/// Shares of each second, one above the other.
function stack(canvas, seconds, colours) {
  const { to, width, height } = prepare(canvas);
  const step = width / SHOWN;
  seconds.forEach((shares, i) => {
    let y = height;
    shares.forEach((share, k) => {
      to.fillStyle = colour(colours[k]);
      to.fillRect(step * i, y - height * share, step + 0.5, height * share);
      y -= height * share;
    });
  });
}

/// One column a second, one row a bucket, the darker the more.
function heat(canvas, seconds, bounds, deadline) {
  const { to, width, height } = prepare(canvas);
  const rows = bounds.length + 1, step = width / SHOWN, tall = height / rows;
  const shade = colour("--heat");
  seconds.forEach((counts, i) => {
    const all = counts.reduce((sum, count) => sum + count, 0);
    counts.forEach((count, row) => {
      if (count === 0) return;
      to.fillStyle = `rgba(${shade}, ${0.15 + 0.85 * Math.sqrt(count / all)})`;
      to.fillRect(step * i, height - tall * (row + 1), step + 0.5, tall);
    });
  });
  const under = bounds.filter((bound) => bound <= deadline).length;
  to.strokeStyle = colour("--bad");
  to.setLineDash([4, 3]);
  to.beginPath();
  to.moveTo(0, height - tall * under);
  to.lineTo(width, height - tall * under);
  to.stroke();
  to.setLineDash([]);
}

const cards = new Map();

function card(name) {
  let known = cards.get(name);
  if (!known) {
    const figure = (kind, label) => {
      const canvas = make("canvas", { role: "img", "aria-label": label });
      const caption = make("figcaption");
      return { kind, canvas, caption, element: make("figure", {}, canvas, caption) };
    };
    const charts = {
      rates: figure("rates", "queries a second over the last two minutes"),
      latency: figure("latency", "latencies over the last two minutes"),
      stages: figure("stages", "share of answers by stage over the last two minutes"),
      price: figure("price", "price of computing time over the last two minutes"),
    };
    const figures = make("dl", { class: "figures" });
    const element = make("article", { class: "card", "aria-label": "endpoint " + name }, make("h2", {}, name), figures,
      make("div", { class: "charts" }, ...Object.values(charts).map((chart) => chart.element)));
    known = { element, figures, charts };
    cards.set(name, known);
    $("endpoints").append(element);
  }
  return known;
}

const say = (text) => make("span", {}, text);
const key = (of, text) => {
  const element = make("span", { class: "key" }, text);
  element.style.setProperty("--of", `var(${of})`);
  return element;
};

function drawEndpoint(now, endpoint) {
  const { figures, charts } = card(endpoint.name);
  const figure = (name, value, kind = "", id = "") => {
    const told = make("dd", kind ? { class: kind } : {}, value);
    if (id) told.dataset.figure = id;
    return make("div", {}, make("dt", {}, name), told);
  };
  const reached = endpoint.attainment;
  figures.replaceChildren(
    figure("offered / s", rate(endpoint.offered_per_s)),
    figure("in time / s", rate(endpoint.in_time_per_s)),
    figure("attainment", percent(reached), reached == null ? "" : reached >= 0.99 ? "good" : "bad"),
    figure("p50", time(endpoint.latency_us.p50)),
    figure("p99", time(endpoint.latency_us.p99)),
    figure("expected right", percent(endpoint.expected_accuracy)),
    figure("labelled right", percent(endpoint.labelled.accuracy)),
    figure("price", endpoint.price.toPrecision(3)),
    figure("answered ever", whole(endpoint.ever.answered), "", "answered"),
    figure("in time ever", whole(endpoint.ever.in_time), "", "in_time"),
    figure("degraded ever", whole(endpoint.ever.degraded), "", "degraded"),
    figure("refused ever", whole(endpoint.ever.refused), "", "refused"),
  );
  const past = shown().map((frame) => of(frame, endpoint.name));
  const values = (read) => past.map((told) => (told ? read(told) : null));
  const top = lines(charts.rates.canvas, [
    { values: values((told) => told.offered_per_s), of: "--dark" },
    { values: values((told) => told.answered_per_s), of: "--s1" },
    { values: values((told) => told.in_time_per_s), of: "--good" },
  ]);
  charts.rates.caption.replaceChildren(key("--dark", "offered"), key("--s1", "answered"), key("--good", "in time"), say("to " + rate(top) + " / s"));
  const bounds = now.bounds_us;
  heat(charts.latency.canvas, past.map((told) => (told ? told.latencies : [])), bounds, endpoint.deadline_us);
  charts.latency.caption.replaceChildren(say("latency, " + time(bounds[0]) + " to " + time(bounds[bounds.length - 1])), say("deadline " + time(endpoint.deadline_us)));
  const stages = Object.keys(endpoint.stages);
  const colours = stages.map((_, i) => stageColours[Math.min(i, stageColours.length - 1)]);
  stack(charts.stages.canvas, past.map((told) => {
    if (!told) return [];
    const counts = stages.map((stage) => told.stages[stage] || 0);
    const all = counts.reduce((sum, count) => sum + count, 0);
    return counts.map((count) => (all ? count / all : 0));
  }), colours);
  charts.stages.caption.replaceChildren(...stages.map((stage, i) => key(colours[i], stage)), say("who answers"));
  const dear = lines(charts.price.canvas, [{ values: values((told) => told.price), of: "--s4" }]);
  charts.price.caption.replaceChildren(key("--s4", "price of a second of computing"), say("to " + (dear < 1e-6 ? "0" : dear.toPrecision(2))));
}

function table(element, header, rows) {
  const head = make("tr", {}, ...header.map((text) => make("th", { scope: "col" }, text)));
  element.replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell) => make("td", {}, cell))))));
}

function bar(share, label) {
  const meter = make("meter", { min: 0, max: 1, high: 0.9, value: share, "aria-label": label });
  return make("span", {}, meter, " " + percent(share));
}

function draw() {
  const now = frames[frames.length - 1];
  if (!now) return;
  if (now.error) {
    $("cluster").textContent = now.error + " (asking again)";
    return;
  }
  const up = now.members.filter((member) => member.up).length;
  const nodes = now.nodes.filter((node) => node.state === "up").length;
  $("cluster").textContent = `cluster ${now.cluster} · leader ${now.leader || "none"}, term ${now.term} · ${up} of ${now.members.length} coordinators, ${nodes} of ${now.nodes.length} nodes up`;
  const trouble = now.unplaceable.map(([model, why]) => `${model} has too few replicas: ${why}`).join(" · ");
  $("trouble").hidden = trouble === "";
  $("trouble").textContent = trouble;
  const names = now.endpoints.map((endpoint) => endpoint.name);
  for (const [name, { element }] of cards) {
    if (!names.includes(name)) {
      element.remove();
      cards.delete(name);
    }
  }
  now.endpoints.forEach((endpoint) => drawEndpoint(now, endpoint));
  if (names.length === 0 && !$("endpoints").firstChild) {
    $("endpoints").append(make("p", { class: "card" }, "No endpoint yet. Try: weir apply -f demo/fashion.toml"));
  } else if (names.length > 0) {
    [...$("endpoints").children].filter((child) => child.tagName === "P").forEach((child) => child.remove());
  }
  table($("nodes"), ["node", "state", "busy", "batches", "queued", "backlog"], now.nodes.map((node) => [
    node.name, node.told ? node.state : node.state + ", no answer", bar(node.busy, "busy"), `${node.running} of ${node.slots}`, whole(node.queued), time(node.backlog_us),
  ]));
  const models = new Map(now.models.map((model) => [model.name, model]));
  table($("models"), ["model", "rows waiting", "batches", "rows a batch", ...now.nodes.map((node) => "on " + node.name)], now.placement.map((placed) => {
    const model = models.get(placed.model);
    const batches = model ? model.batches.count : 0;
    return [placed.model, model ? whole(model.queued) : "–", whole(batches), batches ? (model.batches.rows / batches).toFixed(1) : "–",
      ...placed.replicas.map((count) => (count ? String(count) : "·"))];
  }));
  table($("members"), ["member", "role", "state", "log applied to"], now.members.map((member) => [
    member.name, member.role, member.up ? "up" : "down", whole(member.applied),
  ]));
  const select = $("spike").elements.endpoint;
  if ([...select.options].map((option) => option.value).join() !== names.join()) {
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    if (names.includes(chosen)) select.value = chosen;
  }
}

function tellSpike(spike) {
  if (!spike) return;
  $("spike").querySelector("button").disabled = !spike.over;
  const told = spike.error ? spike.error
    : `${spike.over ? "Sent" : "Sending"}: ${whole(spike.sent)} to ${spike.endpoint}, ${whole(spike.answered)} answered (${whole(spike.degraded)} degraded), ${whole(spike.refused)} refused, ${whole(spike.failed)} failed${spike.unsent ? `, ${whole(spike.unsent)} not sent: too many in flight` : ""}.`;
  if ($("spiked").textContent !== told) $("spiked").textContent = told;
}

let fresh = false;

async function ask() {
  try {
    const last = frames.length ? "?after=" + frames[frames.length - 1].n : "";
    const response = await fetch("api/frames" + last);
    const told = await response.json();
    if (told.frames.length && frames.length && told.frames[0].n <= frames[frames.length - 1].n) frames.length = 0;
    frames.push(...told.frames);
    frames.splice(0, Math.max(0, frames.length - KEPT));
    if (told.frames.length) fresh = true;
    tellSpike(told.spike);
  } catch (error) {
    $("cluster").textContent = "the dashboard's process does not answer (asking again)";
  }
  setTimeout(ask, 1000);
  // A mistake in drawing is one of this page, and stands on the console.
  if (fresh) {
    fresh = false;
    draw();
  }
}

$("spike").addEventListener("submit", async (event) => {
  event.preventDefault();
  const fields = event.target.elements;
  const body = JSON.stringify({ endpoint: fields.endpoint.value, rate: Number(fields.rate.value), seconds: Number(fields.seconds.value) });
  try {
    const response = await fetch("api/spike", { method: "POST", headers: { "x-weir-dashboard": "1" }, body });
    const told = await response.json();
    $("spiked").textContent = told.error || "Sending …";
  } catch (error) {
    $("spiked").textContent = "the dashboard's process does not answer: nothing was sent";
  }
});

window.addEventListener("resize", draw);
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
ask();
