/* Samples side by side, and tokens with their numbers. Every text is set as text, never as HTML. */
"use strict";
const AT_ONCE = 30;
let shown = AT_ONCE;

function element(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

/* Text with the searched words marked. */
function marked(parent, text, needle) {
  const lower = text.toLowerCase();
  let from = 0;
  for (let at = needle ? lower.indexOf(needle) : -1; at >= 0 && lower.length === text.length; at = lower.indexOf(needle, from)) {
    parent.append(text.slice(from, at), element("mark", "", text.slice(at, at + needle.length)));
    from = at + needle.length;
  }
  parent.append(text.slice(from));
  return parent;
}

function reply(title, cell, needle) {
  const box = element("div", "reply");
  box.append(element("h3", "", title), marked(element("p"), cell[0], needle));
  const scores = DATA.samples.scores.map((name, place) => (cell[1][place] == null ? "" : `${name} ${cell[1][place]}`)).filter(Boolean);
  if (scores.length) box.append(element("p", "scores", scores.join(" · ")));
  return box;
}

function chosenRuns() {
  return [...byId("run-boxes").querySelectorAll("input:checked")].map((box) => Number(box.value));
}

const SCORE = { after: (cell, k) => cell?.after?.[1][k] ?? null, before: (cell, k) => cell?.before?.[1][k] ?? null };
const change = (cell, k) => {
  const [a, b] = [SCORE.before(cell, k), SCORE.after(cell, k)];
  return a == null || b == null ? null : b - a;
};
const FILTERS = {
  "": () => true,
  up: (cell, k) => change(cell, k) > 0,
  down: (cell, k) => change(cell, k) < 0 && change(cell, k) != null,
  same: (cell) => cell?.before && cell.after && cell.before[0] === cell.after[0],
  unscored: (cell, k) => cell?.after && SCORE.after(cell, k) == null,
};

function matching() {
  const needle = byId("search").value.trim().toLowerCase();
  const k = Math.max(0, DATA.samples.scores.indexOf(byId("score").value));
  const runs = chosenRuns();
  const keep = FILTERS[byId("filter").value];
  const has = (row) => !needle || row.prompt.toLowerCase().includes(needle) || runs.some((run) =>
    [row.runs[run]?.before, row.runs[run]?.after].some((cell) => cell && cell[0].toLowerCase().includes(needle)));
  const rows = DATA.samples.rows.filter((row) => has(row) && runs.some((run) => row.runs[run] && keep(row.runs[run], k)));
  const known = (values) => values.filter((value) => value != null);
  const extreme = (row, pick, of) => {
    const values = known(runs.map((run) => of(row.runs[run], k)));
    return values.length ? pick(...values) : null;
  };
  const orders = {
    changed: (row) => { const v = extreme(row, (...x) => Math.max(...x.map(Math.abs)), change); return v == null ? null : -v; },
    best: (row) => { const v = extreme(row, Math.max, SCORE.after); return v == null ? null : -v; },
    worst: (row) => extreme(row, Math.min, SCORE.after),
  };
  const key = orders[byId("order").value];
  if (key) rows.sort((a, b) => (key(a) ?? Infinity) - (key(b) ?? Infinity) || 0);
  return { rows, runs, needle };
}

function showSamples() {
  const { rows, runs, needle } = matching();
  const list = byId("sample-list");
  list.replaceChildren();
  for (const row of rows.slice(0, shown)) {
    const sample = element("article", "sample");
    sample.append(marked(element("p", "prompt"), row.prompt, needle));
    const replies = element("div", "replies");
    for (const run of runs) {
      const cell = row.runs[run];
      if (!cell) continue;
      const name = DATA.runs.length > 1 ? `${DATA.runs[run]}, ` : "";
      if (cell.before) replies.append(reply(`${name}before`, cell.before, needle));
      if (cell.after) replies.append(reply(`${name}${cell.before ? "after" : "reply"}`, cell.after, needle));
    }
    sample.append(replies);
    list.append(sample);
  }
  const { total } = DATA.samples;
  const left = total > DATA.samples.rows.length ? `; ${total - DATA.samples.rows.length} more are in samples.jsonl` : "";
  byId("count").textContent = `${rows.length} of ${DATA.samples.rows.length} prompts${left}`;
  byId("more").hidden = rows.length <= shown;
}

function samples() {
  if (!DATA.samples.rows.length) return;
  byId("samples").hidden = false;
  choices(byId("score"), DATA.samples.scores);
  byId("score").parentElement.hidden = !DATA.samples.scores.length;
  DATA.runs.forEach((name, place) => {
    const label = element("label");
    const box = element("input");
    box.type = "checkbox";
    box.value = place;
    box.checked = place < 4;
    label.append(box, name);
    byId("run-boxes").append(label);
  });
  byId("run-boxes").hidden = DATA.runs.length < 2;
  const again = () => { shown = AT_ONCE; showSamples(); };
  byId("search").addEventListener("input", again);
  for (const id of ["order", "score", "filter", "run-boxes"]) byId(id).addEventListener("change", again);
  byId("more").addEventListener("click", () => { shown += AT_ONCE; showSamples(); });
  showSamples();
}

function tint(value, largest) {
  const share = largest ? Math.min(1, Math.abs(value) / largest) : 0;
  return `rgba(${value < 0 ? "214,72,60" : "58,150,84"},${(0.75 * share).toFixed(3)})`;
}

function showTokens() {
  const table = DATA.tokens[byId("token-run").selectedIndex];
  const at = 1 + table.numbers.indexOf(byId("token-number").value);
  const list = byId("token-list");
  list.replaceChildren();
  const largest = Math.max(...table.samples.flatMap((s) => s.tokens.map((token) => Math.abs(token[at] ?? 0))));
  for (const sample of table.samples) {
    const words = element("p", "tokens");
    const apart = table.numbers[0] === "attribution" && !sample.tokens.some((token) => /^\s/.test(token[0]));
    for (const token of sample.tokens) {
      const span = element("span", "", token[0]);
      if (token[at] != null) {
        span.style.background = tint(token[at], largest);
        span.title = `${table.numbers[at - 1]} ${token[at]}`;
        span.addEventListener("click", () => { byId("token-note").textContent = `${JSON.stringify(token[0])}: ${span.title}`; });
      }
      words.append(span, apart ? " " : "");
    }
    list.append(element("p", "prompt", sample.prompt), words);
  }
}

function tokens() {
  if (!DATA.tokens.length) return;
  byId("tokens").hidden = false;
  choices(byId("token-run"), DATA.tokens.map((table) => `${table.run}, step ${table.step} (${table.numbers[0] === "attribution" ? "reward model" : "policy"})`));
  const renew = () => {
    byId("token-number").replaceChildren();
    choices(byId("token-number"), DATA.tokens[byId("token-run").selectedIndex].numbers);
    showTokens();
  };
  byId("token-run").addEventListener("change", renew);
  byId("token-number").addEventListener("change", showTokens);
  renew();
}

samples();
tokens();
for (const link of document.querySelectorAll("nav a")) link.hidden = !byId(link.hash.slice(1)) || byId(link.hash.slice(1)).hidden;
