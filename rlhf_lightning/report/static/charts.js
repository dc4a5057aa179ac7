/* Curves of metrics, and reward against KL. */
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const COLORS = ["#3b76c4", "#c9822b", "#4a9a5b", "#b04a6a", "#7a5ab8", "#2a9d9d", "#8a7a20", "#7c818c", "#d0562f"];
const color = (place) => COLORS[place % COLORS.length];
const ink = () => getComputedStyle(document.body).color;
const byId = (id) => document.getElementById(id);

function choices(select, names) {
  for (const name of names) {
    const option = document.createElement("option");
    option.value = option.textContent = name;
    select.append(option);
  }
}

function axes(x, y) {
  const line = { stroke: "rgba(128,128,128,0.25)", width: 1 };
  return [
    { stroke: ink, grid: line, ticks: line, label: x, labelSize: 20, size: 34 },
    { stroke: ink, grid: line, ticks: line, size: 56, label: y, labelSize: y ? 20 : 0 },
  ];
}

/* Join the groups' [steps, means, lows, highs] on common steps. */
function joined(metric) {
  const groups = DATA.curves.metrics[metric];
  const names = DATA.curves.groups.map((group) => group.name);
  const series = [{ label: "step" }];
  const bands = [];
  const tables = [];
  groups.forEach((columns, place) => {
    if (!columns) return;
    const [steps, means, lows, highs] = columns;
    const alone = steps.length < 60;
    const many = DATA.curves.groups[place].runs > 1;
    const at = series.length;
    series.push({ label: names[place], stroke: color(place), width: 2, spanGaps: true, points: { show: alone, size: 5 },
                  value: (_, v) => (v == null ? "" : v.toPrecision(4)) });
    if (many) {
      const hidden = { stroke: "transparent", points: { show: false }, spanGaps: true, label: "", class: "band" };
      series.push({ ...hidden }, { ...hidden });
      bands.push({ series: [at + 2, at + 1], fill: color(place) + "33" });
      tables.push([steps, means, lows, highs]);
    } else tables.push([steps, means]);
  });
  return { series, bands, data: uPlot.join(tables) };
}

function draw(figure, title, metric) {
  figure.replaceChildren();
  const { series, bands, data } = joined(metric);
  const chart = new uPlot({ title, width: Math.max(260, figure.clientWidth - 16), height: 220, series, bands,
                            scales: { x: { time: false } }, axes: axes("optimiser steps", ""), legend: { live: true } }, data, figure);
  figure.querySelectorAll(".u-legend .band").forEach((row) => { row.style.display = "none"; });
  figure.dataset.metric = metric;
  figure.setAttribute("aria-label", title);
  return chart;
}

const drawn = new Map();
function curves() {
  const metrics = Object.keys(DATA.curves.metrics);
  if (!metrics.length) return;
  byId("curves").hidden = false;
  for (const { title, metric } of DATA.curves.charts) {
    const figure = document.createElement("figure");
    byId("chart-grid").append(figure);
    drawn.set(figure, draw(figure, title, metric));
  }
  const select = byId("metric");
  choices(select, metrics.sort());
  const figure = byId("metric-chart");
  const show = () => drawn.set(figure, draw(figure, select.value, select.value));
  select.addEventListener("change", show);
  show();
}

/* Points that no other point beats: no more KL and a higher reward. */
function unbeaten(points) {
  const kept = [];
  let best = -Infinity;
  for (const point of [...points].sort((a, b) => a.x - b.x || b.y - a.y)) {
    if (point.y > best) { best = point.y; kept.push(point); }
  }
  return kept;
}

function frontier() {
  const { scores, points, runs } = DATA.frontier;
  if (!scores.length || !points.some((run) => run.length)) return;
  byId("frontier").hidden = false;
  const select = byId("frontier-score");
  choices(select, scores);
  const figure = byId("frontier-chart");
  const show = () => {
    figure.replaceChildren();
    const found = points.flatMap((run, place) => run.filter((point) => point[select.value] != null)
      .map((point) => ({ x: point.kl, y: point[select.value], step: point.step, run: place })));
    const tables = runs.map((_, place) => {
      const own = new Map(found.filter((p) => p.run === place).sort((a, b) => a.x - b.x).map((p) => [p.x, p.y]));
      return [[...own.keys()], [...own.values()]];
    });
    const best = unbeaten(found);
    tables.push([best.map((p) => p.x), best.map((p) => p.y)]);
    const shown = (_, v) => (v == null ? "" : v.toPrecision(4));
    const series = [{ label: "KL", value: shown }, ...runs.map((name, place) => (
      { label: name, stroke: color(place), paths: () => null, points: { show: true, size: 8, fill: color(place) }, value: shown })),
      { label: "unbeaten", stroke: ink, dash: [6, 4], spanGaps: true, points: { show: false }, value: shown }];
    const note = byId("frontier-note");
    const hooks = { setCursor: [(chart) => {
      const { left, top } = chart.cursor;
      let nearest = null, least = 40 ** 2;
      for (const point of left < 0 ? [] : found) {
        const distance = (chart.valToPos(point.x, "x") - left) ** 2 + (chart.valToPos(point.y, "y") - top) ** 2;
        if (distance < least && chart.series[point.run + 1].show) { least = distance; nearest = point; }
      }
      note.textContent = nearest
        ? `${runs[nearest.run]}, step ${nearest.step}: ${select.value} ${nearest.y.toPrecision(4)} at KL ${nearest.x.toPrecision(4)}`
        : "Point at a validation to see its run and step; click a name to hide its points.";
    }] };
    drawn.set(figure, new uPlot({ width: Math.max(260, figure.clientWidth - 16), height: 360, series, hooks,
      scales: { x: { time: false } }, axes: axes("KL to the reference, nats per response", select.value) }, uPlot.join(tables), figure));
    figure.dataset.points = found.length;
    note.textContent = "Point at a validation to see its run and step; click a name to hide its points.";
  };
  select.addEventListener("change", show);
  show();
}

curves();
frontier();
addEventListener("resize", () => drawn.forEach((chart, figure) =>
  chart.setSize({ width: Math.max(260, figure.clientWidth - 16), height: chart.height })));

/* A page that follows a run loads itself again, unless somebody is typing. */
const reload = Number(document.body.dataset.reload);
if (reload) setInterval(() => {
  if (document.activeElement?.tagName !== "INPUT") location.reload();
}, reload * 1000);
