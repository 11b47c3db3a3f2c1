// The report's page: sortable tables, Bokeh's plots, the browser of transcripts.
// Every text of a model, an agent or a catalogue enters the document by textContent; nothing here builds HTML from text.
"use strict";

const byId = (id) => document.getElementById(id);
const settings = JSON.parse(byId("settings").textContent);

/** Return a new element with properties (`class`, `data-…` and others as attributes) and children, texts as text. */
function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) element.setAttribute(key, value);
  element.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return element;
}

// ---- tables

function sortTable(table, column, header) {
  const ascending = header.getAttribute("aria-sort") === "descending" || (column === 0 && header.getAttribute("aria-sort") === "none");
  for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  const value = (row) => row.cells[column].dataset.value;
  const compare = (a, b) => {
    if (value(a) === undefined || value(b) === undefined) return (value(a) === undefined) - (value(b) === undefined);
    const order = column === 0 ? value(a).localeCompare(value(b)) : Number(value(a)) - Number(value(b));
    return ascending ? order : -order;
  };
  table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    header.firstElementChild.addEventListener("click", () => sortTable(table, column, header));
  });
}

// ---- plots, drawn when they come near the screen

const plots = JSON.parse(byId("plots").textContent);
const whenSeen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((found) => found.isIntersecting)) {
      whenSeen.unobserve(entry.target);
      Bokeh.embed.embed_item(plots[entry.target.id], entry.target.id);
    }
  },
  { rootMargin: "600px" },
);
for (const id of Object.keys(plots)) whenSeen.observe(byId(id));

// ---- transcripts

const ENDS = ["hit", "ranking_failure", "retrieval_failure", "malformed"];
const [END, RANK, REWARD, FAILURE, TURNS] = [0, 1, 2, 3, 4];
const [KIND, ACTION, CANDIDATES, TERMS, PLACE, REASON, FLAGS] = [0, 1, 2, 3, 4, 5, 6];
const FLAG_NAMES = { u: "unknown titles", d: "duplicates", n: "never retrieved" };
const FLAG_CLASSES = { t: "target", u: "unknown", d: "duplicate", n: "unretrieved" };
const words = (name) => name.replaceAll("_", " ");
const signed = (number) => (number >= 0 ? "+" : "−") + Math.abs(number).toFixed(3);

async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

class Browser {
  constructor(datasets) {
    this.datasets = datasets;
    this.state = { data: 0, a: 0, b: -1, endA: "", endB: "", find: "", user: null };
    this.readHash();
    for (const [id, key] of [["data", "data"], ["agent-a", "a"], ["agent-b", "b"]]) {
      byId(id).addEventListener("change", (event) => this.set({ [key]: Number(event.target.value), ...(key === "data" ? { a: 0, b: -1, user: null } : {}) }));
    }
    byId("outcome-b").addEventListener("change", (event) => this.set({ endB: event.target.value }));
    byId("find").addEventListener("input", (event) => this.set({ find: event.target.value.trim() }));
    byId("controls").addEventListener("submit", (event) => event.preventDefault());
    byId("users").addEventListener("click", (event) => {
      const entry = event.target.closest(".user");
      if (entry) this.set({ user: entry.dataset.user });
    });
    byId("users").addEventListener("keydown", (event) => this.move(event));
    byId("pick-data").hidden = datasets.length < 2;
    byId("controls").hidden = byId("panes").hidden = false;
    this.set({});
  }

  get dataset() { return this.datasets[this.state.data]; }

  readHash() {
    const asked = new URLSearchParams(location.hash.slice(1));
    if (!asked.has("agent")) return;
    const data = Math.max(0, this.datasets.findIndex((found) => found.name === asked.get("data")));
    const place = (name) => this.datasets[data].agents.findIndex((agent) => agent.name === name);
    Object.assign(this.state, { data, a: Math.max(0, place(asked.get("agent"))), b: place(asked.get("beside")), user: asked.get("user") });
  }

  writeHash() {
    const { agents, name } = this.dataset;
    const asked = new URLSearchParams({ data: name, agent: agents[this.state.a].name });
    if (this.state.b >= 0) asked.set("beside", agents[this.state.b].name);
    if (this.state.user !== null) asked.set("user", this.state.user);
    history.replaceState(null, "", `#${asked}`);
  }

  set(changes) {
    const before = this.state;
    this.state = { ...before, ...changes };
    const { dataset } = this;
    byId("browser-note").textContent = noteOf(dataset);
    if (!dataset.agents.length) { byId("panes").hidden = true; this.drawControls(); return; }
    byId("panes").hidden = false;
    this.drawControls();
    if (Object.keys(changes).some((key) => key !== "user") || !Object.keys(changes).length) this.drawUsers();
    else this.markUser();
    this.drawUser();
    if (Object.keys(changes).length) this.writeHash();
  }

  drawControls() {
    const { agents } = this.dataset;
    const options = agents.map((agent, place) => [place, agent.name]);
    fillSelect(byId("data"), this.datasets.map((found, place) => [place, found.name]), this.state.data);
    fillSelect(byId("agent-a"), options, this.state.a);
    fillSelect(byId("agent-b"), [[-1, "nobody"], ...options], this.state.b);
    fillSelect(byId("outcome-b"), [["", "any"], ...ENDS.map((end) => [end, words(end)])], this.state.endB);
    byId("outcome-b").parentElement.hidden = this.state.b < 0;
    byId("outcome-a").replaceChildren(byId("outcome-a").firstElementChild, ...(agents.length ? this.chips() : []));
  }

  chips() {
    const rows = Object.values(this.dataset.agents[this.state.a].rows);
    return ["", ...ENDS].map((end) => {
      const count = end ? rows.filter((row) => row[END] === end).length : rows.length;
      const chip = make("button", { type: "button", class: "chip", "aria-pressed": this.state.endA === end }, `${end ? words(end) : "all"} ${count}`);
      chip.addEventListener("click", () => this.set({ endA: end }));
      return chip;
    });
  }

  /** Return the keys of the users that the filters leave, by user index. */
  chosenUsers() {
    const { agents, users } = this.dataset;
    const { endA, endB, find } = this.state;
    const first = agents[this.state.a].rows;
    const second = this.state.b >= 0 ? agents[this.state.b].rows : null;
    return Object.keys(users).filter((user) =>
      first[user] && (!endA || first[user][END] === endA) && (!second || (second[user] && (!endB || second[user][END] === endB)))
      && (!find || users[user].id.includes(find)));
  }

  drawUsers() {
    const { agents, users } = this.dataset;
    this.shown = this.chosenUsers();
    if (!this.shown.includes(this.state.user)) this.state.user = this.shown[0] ?? null;
    byId("count").textContent = `${this.shown.length} users`;
    byId("users").replaceChildren(...this.shown.map((user) => {
      const rows = [this.state.a, this.state.b].filter((place) => place >= 0).map((place) => agents[place].rows[user]);
      const dots = rows.map((row) => make("span", { class: "dot", style: `background:${settings.end_colors[row[END]]}`, title: words(row[END]) }));
      const what = rows.map((row) => (row[RANK] ? `#${row[RANK]}` : row[END] === "malformed" ? "malformed" : "–")).join(" | ");
      return make("div", { class: "user", role: "option", "data-user": user, "aria-selected": false }, ...dots, users[user].id, make("span", { class: "what" }, what));
    }));
    this.markUser();
  }

  markUser() {
    for (const entry of byId("users").querySelectorAll("[aria-selected=true]")) entry.setAttribute("aria-selected", false);
    const entry = this.state.user === null ? null : byId("users").querySelector(`[data-user="${CSS.escape(this.state.user)}"]`);
    if (!entry) return;
    entry.setAttribute("aria-selected", true);
    const list = byId("users");
    if (entry.offsetTop < list.scrollTop || entry.offsetTop > list.scrollTop + list.clientHeight - 30) list.scrollTop = entry.offsetTop - list.clientHeight / 2;
  }

  move(event) {
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (!step || !this.shown.length) return;
    event.preventDefault();
    const place = this.shown.indexOf(this.state.user) + step;
    this.set({ user: this.shown[Math.min(Math.max(place, 0), this.shown.length - 1)] });
  }

  drawUser() {
    const { agents, items, users } = this.dataset;
    if (this.state.user === null) {
      byId("user").replaceChildren("No user is left by these filters.");
      byId("episodes").replaceChildren();
      return;
    }
    byId("user").replaceChildren(...describeUser(users[this.state.user], items));
    const places = [this.state.a, this.state.b].filter((place) => place >= 0);
    byId("episodes").replaceChildren(...places.map((place) => drawEpisode(agents[place], users[this.state.user], agents[place].rows[this.state.user], items)));
  }
}

function noteOf(dataset) {
  const shown = Object.keys(dataset.users).length;
  const part = shown < dataset.num_users ? `A fixed sample of ${shown} of ${dataset.num_users} users. ` : "";
  const missing = dataset.note ? `Without transcripts: ${dataset.note}. ` : "";
  return `${part}${missing}Up and down (or j and k) walk through the users.`;
}

function fillSelect(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  select.value = String(chosen);
}

function itemNodes(item) {
  return item[1] ? [item[0], " ", make("small", {}, item[1])] : [item[0]];
}

function describeUser(user, items) {
  const facts = [`history of ${user.history_length} items`];
  if (user.target_count !== null) facts.push(`target chosen ${user.target_count} times in training`);
  if (user.trm_rank !== null) facts.push(`ranked ${user.trm_rank} by the TRM alone`);
  const list = make("ol", { start: user.history_length - user.history.length + 1 }, ...user.history.map((id) => make("li", {}, ...itemNodes(items[id]))));
  return [
    make("p", {}, make("strong", {}, `User ${user.id}`), ` · ${facts.join(" · ")}`),
    make("p", {}, "Target: ", make("span", { class: "target" }, ...itemNodes(items[user.target]))),
    make("details", {}, make("summary", {}, `The last ${user.history.length} items of the history, as the prompt shows them`), list),
  ];
}

function drawEpisode(agent, user, row, items) {
  const end = row[RANK] ? `hit at ${row[RANK]}` : row[END] === "malformed" ? `malformed: ${words(row[FAILURE] ?? "unknown")}` : words(row[END]);
  const title = make("h3", {}, agent.name, make("span", { class: "badge", style: `background:${settings.end_colors[row[END]]}` }, end), rewardNode(row[REWARD], "reward "));
  const seen = new Set();
  const turns = row[TURNS].map((turn, place) => drawTurn(turn, place, user, items, seen));
  return make("article", { class: "episode" }, title, ...turns);
}

function rewardNode(reward, label = "") {
  return make("span", { class: `reward ${reward > 0 ? "plus" : reward < 0 ? "minus" : ""}` }, `${label}${signed(reward)}`);
}

function drawTurn(turn, place, user, items, seen) {
  const terms = Object.entries(turn[TERMS]).filter(([, paid]) => paid !== 0);
  const reward = terms.reduce((sum, [, paid]) => sum + paid, 0);
  const split = make("span", { class: "terms" }, terms.map(([name, paid]) => `${name} ${signed(paid)}`).join("  "));
  const head = make("h4", {}, `turn ${place + 1}: ${turn[KIND]}`, split, rewardNode(reward));
  const parts = [head, make("p", { class: "action" }, ...coloured(turn[ACTION], turn[FLAGS]))];
  if (turn[CANDIDATES].length) parts.push(drawCandidates(turn, user, items, seen));
  const notes = notesOf(turn);
  if (notes) parts.push(make("p", { class: "notes" }, notes));
  return make("div", { class: "turn" }, ...parts);
}

function notesOf(turn) {
  if (turn[REASON]) return `not well-formed: ${words(turn[REASON])}`;
  if (turn[KIND] !== "recommend") return "";
  const place = turn[FLAGS].indexOf("t") + 1;
  const faults = Object.entries(FLAG_NAMES).map(([flag, name]) => [name, [...turn[FLAGS]].filter((found) => found === flag).length]);
  const said = faults.filter(([, count]) => count).map(([name, count]) => `${name}: ${count}`);
  return [place ? `target at ${place} of ${turn[FLAGS].length}` : "the target is not in the list", ...said].join(" · ");
}

function drawCandidates(turn, user, items, seen) {
  const known = turn[CANDIDATES].filter((id) => seen.has(id)).length;
  const entries = turn[CANDIDATES].map((id) => {
    const name = id === user.target ? "target" : seen.has(id) ? "seen" : "";
    return make("li", { class: name }, ...itemNodes(items[id]));
  });
  for (const id of turn[CANDIDATES]) seen.add(id);
  const where = turn[PLACE] ? `target at ${turn[PLACE]}` : "without the target";
  const again = known ? `, ${known} seen before` : "";
  return make("details", { open: "" }, make("summary", {}, `${turn[CANDIDATES].length} candidates, ${where}${again}`), make("ol", { class: "candidates" }, ...entries));
}

// The tags in their order are think, preference, item list and recommendation list, each begin and end.
const TAG_KINDS = ["think", "preference", "item", "recommendation"];
const kindByTag = new Map(settings.tags.map((tag, place) => [tag, TAG_KINDS[place >> 1]]));
const ANY_TAG = new RegExp(`(${settings.tags.map((tag) => tag.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`);

/** Return the nodes of an action: its tags coloured, its preference and the lines of its list marked. */
function coloured(text, flags) {
  let open = null;
  return text.split(ANY_TAG).filter((part) => part).flatMap((part) => {
    const kind = kindByTag.get(part);
    if (kind) {
      open = settings.tags.indexOf(part) % 2 === 0 ? kind : null;
      return [make("span", { class: `tag ${kind}` }, part)];
    }
    if (open === "preference") return [make("span", { class: "inside" }, part)];
    return open === "recommendation" ? markedLines(part, flags) : [document.createTextNode(part)];
  });
}

/** Return the lines of a final list, each marked by its flag; blank lines have none. */
function markedLines(text, flags) {
  let place = 0;
  return text.split(/(\n)/).map((line) => {
    const name = line.trim() ? FLAG_CLASSES[flags[place++]] : undefined;
    return name ? make("span", { class: name }, line) : document.createTextNode(line);
  });
}

if (byId("browser")) {
  unpack(byId("transcripts").textContent)
    .then((datasets) => { window.transcripts = new Browser(datasets); })
    .catch((error) => { byId("browser-note").textContent = `The transcripts cannot be read: ${error}`; });
}
