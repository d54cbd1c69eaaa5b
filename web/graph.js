/**
 * What the page shows of a graph at work: its nodes over time, and what it asks a person.
 *
 * Both are made of events alone (`tasks`, `interrupt`, how the run ended), so they are right after a reload, too. A time
 * is what this page's clock measured between two arrivals; where an event came later than it happened, as after a
 * reconnect, there is none. Not here: the request, and anything of the rest of the page; `el` and the like are its own.
 */

const SHORTEST = 10;    // ms; what comes closer together came in one piece, and says nothing of how long it took
const VISIBLE = 100;    // ms; where the whole run took less there is nothing to compare
const MOST = 100;       // steps of one graph that stay on the page
const WORDS = { running: "running", done: "done", failed: "failed", waiting: "waits for you", stopped: "stopped" };

/** The nodes of a run: one below the other, those that work at the same time in a bracket, a subgraph's in their node. */
export function timeline({ el, seconds }) {
  const nodes = new Map();    // by task
  const count = el("span"), top = newList(), running = () => [...nodes.values()].filter(({ state }) => state === "running");
  const root = el("details.graph", { open: true, data: { testid: "graph" } }, el("summary", {}, "Graph", count), top.root);
  let began = 0, last = 0, seen = 0, gaps = false;    // gaps: of some events it is not known when they happened

  function newList() {
    return { root: el("ol"), wave: [], earlier: 0, before: el("li.note") };
  }
  /** The list of the innermost node that a namespace names, each `<node>:<task>`. */
  function listOf(ns) {
    const node = ns.map((entry) => nodes.get(entry.slice(entry.lastIndexOf(":") + 1))).findLast(Boolean);
    if (!node) return top;
    if (!node.inner) node.root.append((node.inner = newList()).root);
    return node.inner;
  }
  /** Nodes that begin while others of their graph are at work are together with these. */
  function place(list, node) {
    if (list.wave.every(({ state }) => state !== "running")) {
      list.wave = [node];
      list.root.append(node.root);
      if (list.root.childElementCount > MOST) shorten(list);
      return;
    }
    if (list.wave.length === 1) {
      const [{ root: first }] = list.wave, group = el("ol");
      first.replaceWith(el("li.parallel", { data: { testid: "parallel" } }, el("span", {}, "in parallel"), group));
      group.append(first);
    }
    list.wave[0].root.parentNode.append(node.root);
    list.wave.push(node);
  }
  function shorten(list) {
    const oldest = list.root.children[list.earlier ? 1 : 0];
    for (const [id, { root: one }] of nodes) if (oldest.contains(one)) nodes.delete(id);
    oldest.remove();
    list.before.textContent = `${list.earlier += 1} earlier`;
    list.root.prepend(list.before);
  }
  function newNode(name) {
    const breakable = name.split(/(?<=\.)/).flatMap((part) => [part, el("wbr")]);
    const bar = el("i"), told = el("span.told"), step = el("div", {}, el("i.dot"), el("b", {}, ...breakable), el("i.track", {}, bar), told);
    return { root: el("li.node", { data: { testid: "node" } }, step), name, bar, told };
  }
  function tell(node, state, extra = "", time = "") {
    node.state = node.root.dataset.state = state;
    const plain = state === "running" || state === "done";    // the mark and the time say it, to who can see them
    node.told.replaceChildren(el(plain ? "span.unseen" : "span", {}, WORDS[state] + extra), time && ` ${time}`);
  }
  function draw({ bar, from, to }) {
    bar.hidden = !(from && to);
    if (bar.hidden) return;
    bar.style.setProperty("--from", from - began);
    bar.style.setProperty("--to", to - began);
    last = Math.max(last, to);
    root.style.setProperty("--all", Math.max(last - began, 1));
    root.classList.toggle("timed", last - began >= VISIBLE);
  }
  function sum() {
    const busy = running().length, all = `${seen} ${seen === 1 ? "step" : "steps"}`, time = last - began;
    count.textContent = busy ? `${all}, ${busy} running` : gaps || time < SHORTEST ? all : `${all} in ${seconds(time)}`;
  }

  return {
    root,
    /** Take a `tasks` event; `at` is when it came, 0 where that is not when it happened. */
    take({ ns, data: { id, name, error, interrupts, ...task } }, at = 0) {
      const known = nodes.get(id);
      gaps ||= !at;
      if ("input" in task && !known) {
        const node = newNode(name);
        place(listOf(ns), node);
        nodes.set(id, Object.assign(node, { from: at, to: at }));
        began ||= at;
        seen += 1;
        tell(node, "running");
        draw(node);
      } else if (!("input" in task) && known) {
        const time = known.from && at ? at - known.from : 0;
        known.to = at;
        if (error) tell(known, "failed", `: ${error}`);
        else if (interrupts?.length) tell(known, "waiting");
        else tell(known, "done", "", time < SHORTEST ? "" : seconds(time));
        draw(known);
      }
      sum();
    },
    tick(now) {
      for (const node of running().filter(({ from }) => from)) {
        node.to = now;
        tell(node, "running", "", `${((now - node.from) / 1000).toFixed(1)} s`);
        draw(node);
      }
    },
    /** The run is over: what still was at work has been stopped. */
    end() {
      for (const node of running()) tell(node, "stopped");
      sum();
    },
    /** Nobody is waited for any longer. */
    goOn() {
      for (const node of nodes.values()) if (node.state === "waiting") node.told.textContent = "waited";
    },
    working: () => running().map(({ name }) => name).join(", "),
    isEmpty: () => seen === 0,
  };
}

/**
 * What a graph asks a person. Can be answered from `open` to `close`: then `answered` is called with the answer as people
 * read it, and as the request has it. `resume` is the answer to a single question, else has each by its interrupt's id.
 */
export function questions({ el, json }, answered) {
  const asked = [], set = el("fieldset", { disabled: true }), root = el("form.asks", { ariaLabel: "The graph waits for you", data: { testid: "interrupt" } }, set);

  function add({ id, value }) {
    const { text, more } = read(value), box = el("textarea", { rows: 1, required: true, ariaLabel: text || "Answer", placeholder: "Answer in words, or as JSON" });
    const one = { id, box, answer: () => one.choice?.text === box.value ? one.choice : { label: box.value, value: parsed(box.value) } };
    const buttons = choices(value, text).map(([label, choice]) => {
      const button = el("button.choice", { type: "button" }, label);
      button.addEventListener("click", () => {
        one.choice = { label, value: choice, text: box.value = JSON.stringify(choice) };
        root.requestSubmit();
      });
      return button;
    });
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      root.requestSubmit();
    });
    asked.push(one);
    set.append(...(text ? [el("p", {}, text)] : []), ...(more === undefined ? [] : [el("pre", {}, json(more))]), box, el("div", {}, ...buttons));
  }
  function open() {
    if (!asked.length) set.append(el("p", {}, "The graph has paused here, as it was told to."), el("div"));
    set.lastChild.append(el("button.choice", { type: "submit", data: { testid: "answer-interrupt" } }, asked.length ? "Answer" : "Go on"));
    set.disabled = false;
  }
  root.addEventListener("submit", (event) => {
    event.preventDefault();
    if (set.disabled) return;
    const answers = asked.map(({ id, answer }) => ({ id, ...answer() })), [only] = answers;
    const resume = answers.length > 1 ? Object.fromEntries(answers.map(({ id, value }) => [id, value])) : only?.value;
    answered(answers.map(({ label }) => label).join("\n") || "Go on", answers.length ? { resume } : { input: null });
  });
  return { root, add, open, close() { set.disabled = true; }, focus: () => (asked[0]?.box ?? set.lastChild.lastChild).focus() };
}

function parsed(text) {
  try { return JSON.parse(text); } catch { return text; }
}

/** The tool calls that LangChain's human in the loop wants approved, if that is what asks. */
function approvals(value) {
  if (value?.type === "tool_approval") return [value];
  return Array.isArray(value?.action_requests) ? value.action_requests : null;
}

/** The question in what a graph asks, and what else is in it. */
function read(value) {
  if (typeof value === "string") return { text: value };
  if (approvals(value)) {
    const calls = approvals(value).map(({ name, args }) => ({ name, args })), [only] = calls;
    const why = approvals(value).map(({ description }) => `${description ?? "May this be done?"}`.split("\n\nTool: ")[0]);    // the rest tells the call again
    return { text: [...new Set(why)].join("\n"), more: calls.length > 1 ? calls : only };
  }
  const key = ["question", "message", "prompt", "description"].find((name) => value?.[name] && typeof value[name] === "string");
  if (!key) return { text: "", more: value };
  const { [key]: text, ...more } = value;
  return { text, more: Object.keys(more).length ? more : undefined };
}

/** Answers that can be given at a click, where they are clear. */
function choices(value, text) {
  if (approvals(value)) {
    const allowed = ({ allowed_decisions: some }) => ["approve", "reject"].every((type) => some?.includes(type));
    if (!(value.review_configs ?? []).every(allowed)) return [];
    const decide = (type) => value.action_requests ? { decisions: value.action_requests.map(() => ({ type })) } : { type };
    return [["Approve", decide("approve")], ["Reject", decide("reject")]];
  }
  const yesOrNo = /^(?:shall|should|may|can|could|would|will|do|does|did|is|are|ok|okay|really|proceed|continue|approve|confirm|allow|send|delete)\b[^]*\?\s*$/i;
  return yesOrNo.test(text) ? [["Yes", true], ["No", false]] : [];
}
