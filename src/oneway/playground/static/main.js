// The page sends each choice to the server and shows the answer. The newest choice wins.

import * as address from "./address.js";
import { examine, fetchAnswers, fetchProgress, fetchState } from "./api.js";
import { Pad } from "./pad.js";
import { paint, textOf } from "./pictures.js";
import { NAMES, errorText, gapText, settingText, shareOf, shareText, valueText, verdictText } from "./words.js";

const REST = 450;
const POLL = 350;
const ADDRESS = 300;
const PRESETS = {
  paper: ["adversarial-noise", { step_size: 0.1, steps: 10, budget: null }],
  "paper-faces": ["adversarial-noise", { step_size: 0.4, steps: 10, budget: null }],
  round: ["rounding", { decimals: 1 }],
  codebook: ["codebook", { min_members: 20, rate_weight: 0.01 }],
};
const ATTACKERS = {
  "label-only": ["Label alone", "labels"],
  static: ["Static", "clean scores"],
  "retrained, mixed": ["Retrained, mixed settings", "this defense at several settings"],
  retrained: ["Retrained", "exactly this setting"],
};

const at = (id) => document.getElementById(id);
const pause = (milliseconds) => new Promise((go) => { setTimeout(go, milliseconds); });
const painted = () => new Promise((go) => {
  requestAnimationFrame(() => { setTimeout(go, 0); });
});

let known;
let pad;
const shown = { view: "all", defense: "codebook", options: {}, query: { sample: 6 } };
const findings = new Map();
let newest = 0;
let answered = 0;
let asking = false;
let began;
let resting;
// What the rows of the comparison show: a query, and a setting of each defense.
let compared = "";
const drawn = new Map();
let writing;

const settingOf = (defense) => ({ defense, options: { ...shown.options[defense] } });
const keyOf = (setting) => JSON.stringify(setting);
const settings = () => (shown.view === "one" ? [settingOf(shown.defense)] : Object.keys(NAMES).map(settingOf));
const isEmpty = () => shown.query.strokes !== undefined && shown.query.strokes.length === 0;

function trouble(error) {
  at("trouble").hidden = !error;
  at("trouble").textContent = error ? error.message : "";
}

// Something was changed, by an event of that time.
function changed(time) {
  began = time ?? performance.now();
  newest += 1;
  writeAddress();
  showControls();
  clearTimeout(resting);
  resting = setTimeout(() => examineAll(newest), REST);
  document.body.dataset.state = "busy";
  refresh();
}

// A browser takes only so many changes of an address: not each position that a slider passes.
function writeAddress() {
  document.body.dataset.address = "old";
  writing ??= setTimeout(() => {
    writing = undefined;
    address.write(shown);
    document.body.dataset.address = "written";
  }, ADDRESS);
}

// Ask until the newest choice is shown; one request at a time.
async function refresh() {
  if (asking) {
    return;
  }
  asking = true;
  try {
    while (answered !== newest) {
      // Before the answer: an attacker who is trained meanwhile asks for another.
      answered = newest;
      const since = began;
      began = undefined;
      if (isEmpty()) {
        showNothing();
      } else {
        await ask(queryOf());
      }
      await painted();
      if (since !== undefined) {
        performance.measure("change to paint", { start: since, end: performance.now() });
      }
      trouble(null);
    }
    document.body.dataset.state = "shown";
  } catch (error) {
    answered = newest;
    compared = "";
    trouble(error);
    document.body.dataset.state = "failed";
  } finally {
    asking = false;
  }
}

// Of the comparison, only what its rows do not show yet.
async function ask(query) {
  const all = shown.view === "all";
  const key = JSON.stringify(query);
  if (key !== compared) {
    drawn.clear();
  }
  const asked = settings().filter((each) => !all || drawn.get(each.defense) !== keyOf(each));
  if (asked.length === 0) {
    return;
  }
  compared = key;
  if (all) {
    asked.forEach((each) => drawn.set(each.defense, keyOf(each)));
  }
  const answers = await fetchAnswers(query, asked);
  for (const { setting, finding } of answers.answers) {
    if (finding) {
      findings.set(keyOf(setting), finding);
    }
  }
  show(answers, all);
}

function queryOf() {
  return shown.query.sample !== undefined
    ? { sample: shown.query.sample }
    : { drawing: textOf(pad.bytes()) };
}

// When nothing moves, let an attacker train for exactly what is shown, one setting after the other.
async function examineAll(mine) {
  if (isEmpty()) {
    return;
  }
  // The chosen defense first.
  const chosen = settingOf(shown.defense);
  const others = settings().filter((each) => each.defense !== shown.defense);
  for (const setting of [chosen, ...others]) {
    try {
      let progress = await examine(setting);
      while (mine === newest && ["waiting", "working"].includes(progress.state)) {
        learn(setting, progress);
        await pause(POLL);
        progress = await fetchProgress(setting);
      }
      if (mine !== newest) {
        return;
      }
      learn(setting, progress);
    } catch (error) {
      trouble(error);
      return;
    }
  }
}

function learn(setting, progress) {
  const key = keyOf(setting);
  const before = findings.get(key);
  if (progress.finding) {
    findings.set(key, progress.finding);
  }
  if (progress.state === "done" && !before?.final) {
    // From now on another attacker rebuilds.
    answered = -1;
    drawn.delete(setting.defense);
    refresh();
  }
  if (shown.view === "one") {
    showVerdict(setting);
    showNote(setting, progress);
  } else {
    showShare(setting, progress);
  }
}

function showControls() {
  const { defense } = shown;
  for (const radio of document.getElementsByName("defense")) {
    radio.checked = radio.value === defense;
  }
  for (const options of document.querySelectorAll(".options")) {
    options.hidden = options.dataset.defense !== defense;
  }
  for (const [name, value] of Object.entries(shown.options[defense])) {
    const slider = at(name);
    slider.value = String(known.sliders[defense][name].indexOf(value));
    const text = valueText(name, value);
    slider.setAttribute("aria-valuetext", text);
    document.querySelector(`output[for="${name}"]`).textContent = text;
  }
  for (const [view, other] of [["one", "all"], ["all", "one"]]) {
    at(`view-${view}`).setAttribute("aria-pressed", String(shown.view === view));
    at(view).hidden = shown.view === other;
  }
  at("numbers-card").hidden = shown.view === "all";
  for (const row of at("all-rows").rows) {
    row.classList.toggle("current", row.dataset.defense === defense);
  }
  for (const radio of document.getElementsByName("sample")) {
    radio.checked = Number(radio.value) === shown.query.sample;
  }
}

function show(answers, all) {
  paint(at("as-sent"), answers.sent);
  if (shown.query.sample !== undefined) {
    pad.show([], at("as-sent"));
  }
  const cells = answers.answers.find((answer) => answer.cells !== null)?.cells;
  if (cells !== undefined) {
    at("cells").textContent = `${cells} codewords`;
  }
  if (all) {
    showAll(answers);
    return;
  }
  const [answer] = answers.answers;
  at("label").textContent = String(answer.label);
  at("l1").textContent = answer.l1.toFixed(2);
  showBars(answers.clean, answer.released, answer.label);
  guess("clean", answers.from_clean);
  guess("static", answer.static);
  guess("retrained", answer.retrained);
  guess("label", answers.label_alone);
  showVerdict(answer.setting);
  showNote(answer.setting, { state: answer.exact ? "done" : "waiting" });
}

function showNothing() {
  // The next query, even the last one again, is shown anew.
  compared = "";
  at("label").textContent = "…";
  for (const canvas of document.querySelectorAll("#as-sent, .guesses canvas, #all canvas")) {
    canvas.getContext("2d").clearRect(0, 0, 32, 32);
  }
  for (const error of document.querySelectorAll(".error")) {
    error.textContent = "";
  }
  for (const strip of document.querySelectorAll(".strip")) {
    strip.setAttribute("aria-label", "No scores yet");
    strip.querySelectorAll("span").forEach((bar) => { bar.style.height = "0"; });
  }
  showBars(Array(10).fill(0), Array(10).fill(0), -1);
  at("l1").textContent = "…";
  at("verdict-text").textContent = "Draw a digit, or pick one.";
}

function showBars(clean, released, label) {
  const rows = at("bars").rows;
  clean.forEach((before, digit) => {
    const row = rows[digit];
    row.classList.toggle("top-score", digit === label);
    row.cells[1].textContent = before.toFixed(3);
    row.cells[2].textContent = released[digit].toFixed(3);
    const [first, second] = row.querySelectorAll(".bar");
    first.style.width = `${100 * before}%`;
    second.style.width = `${100 * released[digit]}%`;
  });
}

function guess(name, { image, error }) {
  const figure = document.querySelector(`[data-guess="${name}"]`);
  paint(figure.querySelector("canvas"), image);
  figure.querySelector(".error").textContent = `error ${errorText(error)}`;
}

const GUESSES = { static: "static", retrained: "retrained", "retrained, mixed": "retrained", "label-only": "label" };

function showVerdict(setting) {
  const finding = findings.get(keyOf(setting));
  at("verdict-text").textContent = verdictText(finding);
  const strongest = finding?.final ? GUESSES[finding.strongest] : undefined;
  for (const figure of document.querySelectorAll("[data-guess]")) {
    const best = figure.dataset.guess === strongest;
    figure.classList.toggle("strongest", best);
    figure.querySelector(".badge").hidden = !best;
  }
  at("mark").hidden = !finding || finding.attack_failed;
  at("numbers-card").hidden = !finding;
  if (!finding) {
    return;
  }
  const share = shareOf(finding);
  at("mark").style.left = `${Math.min(100, Math.max(0, share))}%`;
  const [who] = ATTACKERS[finding.strongest];
  at("verdict-note").textContent =
    `Over ${known.queries.toLocaleString("en")} test digits, of the strongest attacker so far (${who.toLowerCase()}). `
    + `Closed gap G: ${gapText(finding)}; 0 is no defense, 1 is the label alone.`;
  at("numbers").replaceChildren(...Object.entries(finding.errors).map(([name, error]) => {
    const [title, taught] = ATTACKERS[name];
    return rowOf([title, taught, errorText(error)]);
  }));
  at("numbers-note").textContent =
    `Clean scores give an error of ${errorText(known.baselines.clean)}, the label alone ${errorText(known.baselines.label)}, `
    + `the mean of all digits ${errorText(known.baselines.prior)}. An attacker whose error is above the label's `
    + "would rather use the label: then the label counts. G = (strongest error - clean) / (label - clean).";
}

function rowOf([title, ...texts]) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = title;
  row.append(head, ...texts.map((text) => {
    const cell = document.createElement("td");
    cell.textContent = text;
    return cell;
  }));
  return row;
}

function noteOf(progress) {
  if (progress.state === "done") {
    return "retrained for exactly this setting";
  }
  if (progress.state === "failed") {
    return `retrained on mixed settings; training for this setting failed: ${progress.stage}`;
  }
  if (progress.state === "superseded") {
    return "retrained on mixed settings; another page has answered for another setting";
  }
  return "retrained on mixed settings; training for this setting…";
}

function showNote(setting, progress) {
  if (keyOf(setting) === keyOf(settingOf(shown.defense))) {
    const text = noteOf(progress);
    document.body.dataset.attackers = progress.state;
    // Told again only if it says something else: it is read aloud.
    if (at("retrained-note").textContent !== text) {
      at("retrained-note").textContent = text;
    }
  }
}

function showAll(answers) {
  paint(at("all-sent"), answers.sent);
  for (const answer of answers.answers) {
    const row = document.querySelector(`#all-rows [data-defense="${answer.setting.defense}"]`);
    row.querySelector(".setting").textContent = settingText(answer.setting);
    row.querySelectorAll(".strip span").forEach((bar, digit) => {
      bar.style.height = `${100 * answer.released[digit]}%`;
    });
    row.querySelector(".strip").setAttribute(
      "aria-label", `Scores of 0 to 9: ${answer.released.map((score) => score.toFixed(2)).join(", ")}`,
    );
    for (const name of ["static", "retrained"]) {
      paint(row.querySelector(`.${name} canvas`), answer[name].image);
      row.querySelector(`.${name} .error`).textContent = `error ${errorText(answer[name].error)}`;
    }
    showShare(answer.setting, { state: answer.exact ? "done" : "waiting" });
  }
}

function showShare(setting, progress) {
  const row = document.querySelector(`#all-rows [data-defense="${setting.defense}"]`);
  const finding = findings.get(keyOf(setting));
  row.querySelector(".share").textContent = finding ? shareText(finding) : "…";
  row.querySelector(".note").textContent = noteOf(finding?.final ? { state: "done" } : progress);
  document.body.dataset.attackers = settings().every((each) => findings.get(keyOf(each))?.final) ? "done" : "working";
}

function build() {
  for (const caption of document.querySelectorAll(".guesses figcaption")) {
    caption.append(span("badge", "strongest on average"));
  }
  for (let digit = 0; digit < 10; digit += 1) {
    const row = rowOf([String(digit), "", "", ""]);
    const pair = document.createElement("div");
    pair.className = "pair";
    for (const kind of ["before", "after"]) {
      const bar = document.createElement("div");
      bar.className = `bar ${kind}`;
      pair.append(bar);
    }
    row.cells[3].className = "shown";
    row.cells[3].append(pair);
    at("bars").append(row);
  }
  known.samples.forEach(({ label, image }, number) => {
    const choice = document.createElement("label");
    const radio = document.createElement("input");
    radio.type = "radio";
    radio.name = "sample";
    radio.value = String(number);
    radio.setAttribute("aria-label", number < 10 ? `A clear ${label}` : `An unclear ${label}`);
    radio.addEventListener("change", (event) => {
      shown.query = { sample: number };
      changed(event.timeStamp);
    });
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 32;
    canvas.className = "picture";
    paint(canvas, image);
    choice.append(radio, canvas);
    at("samples").append(choice);
  });
  for (const [defense, name] of Object.entries(NAMES)) {
    at("all-rows").append(compareRow(defense, name));
  }
  for (const [defense, sliders] of Object.entries(known.sliders)) {
    shown.options[defense] = { ...known.defaults[defense] };
    for (const [name, positions] of Object.entries(sliders)) {
      const slider = at(name);
      slider.min = "0";
      slider.max = String(positions.length - 1);
      slider.addEventListener("input", (event) => {
        shown.options[defense][name] = positions[Number(slider.value)];
        changed(event.timeStamp);
      });
    }
  }
}

function compareRow(defense, name) {
  const row = rowOf([name, "", "", "", ""]);
  row.dataset.defense = defense;
  // Said in full, since a narrow page lays the table out as cards.
  row.setAttribute("role", "row");
  const [head, scores, ...rest] = row.cells;
  head.setAttribute("role", "rowheader");
  for (const cell of [scores, ...rest]) {
    cell.setAttribute("role", "cell");
  }
  scores.className = "scores";
  rest[2].className = "gives";
  head.replaceChildren(span("name", name), span("setting quiet", ""));
  const strip = document.createElement("div");
  strip.className = "strip";
  strip.setAttribute("role", "img");
  strip.append(...Array.from({ length: 10 }, () => span("after", "")));
  const digits = document.createElement("div");
  digits.className = "digits";
  digits.setAttribute("aria-hidden", "true");
  digits.append(...Array.from({ length: 10 }, (_, digit) => span("", String(digit))));
  scores.append(strip, digits);
  for (const [cell, attacker] of [[rest[0], "static"], [rest[1], "retrained"]]) {
    cell.className = attacker;
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 32;
    canvas.className = "picture";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Rebuilt by the ${attacker} attacker, ${name}`);
    cell.append(canvas, span("error quiet", ""));
  }
  rest[2].append(span("share", "…"), span("note quiet", ""));
  return row;
}

function span(className, text) {
  const made = document.createElement("span");
  made.className = className;
  made.textContent = text;
  return made;
}

function listen() {
  pad = new Pad(at("pad"), () => {
    shown.query = { strokes: pad.strokes };
    changed();
  });
  at("clear").addEventListener("click", (event) => {
    pad.show([]);
    shown.query = { strokes: [] };
    changed(event.timeStamp);
  });
  at("undo").addEventListener("click", () => pad.undo());
  for (const radio of document.getElementsByName("defense")) {
    radio.addEventListener("change", (event) => {
      shown.defense = radio.value;
      changed(event.timeStamp);
    });
  }
  for (const button of document.querySelectorAll("[data-preset]")) {
    button.addEventListener("click", (event) => {
      const [defense, options] = PRESETS[button.dataset.preset];
      shown.defense = defense;
      shown.options[defense] = { ...options };
      changed(event.timeStamp);
    });
  }
  for (const view of ["one", "all"]) {
    at(`view-${view}`).addEventListener("click", (event) => {
      shown.view = view;
      changed(event.timeStamp);
    });
  }
  window.addEventListener("hashchange", () => {
    adopt();
    changed();
  });
}

// Show what the address says.
function adopt() {
  address.read(shown, known);
  if (shown.query.strokes !== undefined) {
    pad.show(shown.query.strokes);
  }
}

async function start() {
  known = await fetchState();
  while (!known.ready) {
    at("preparing").hidden = false;
    if (known.failure) {
      throw new Error(known.failure);
    }
    await pause(POLL);
    known = await fetchState();
  }
  at("preparing").hidden = true;
  at("ready").hidden = false;
  build();
  listen();
  adopt();
  changed();
}

start().catch(trouble);
