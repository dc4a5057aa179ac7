"use strict";
// Keys, dialogs, the minimum time, and saving that survives a server that is away. Every page works without this script.
(() => {
  const form = document.getElementById("answer");
  const find = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const say = (text) => { const status = find("#status"); if (status) status.textContent = text; };

  // ---- dialogs
  for (const opener of all("[data-dialog]")) {
    const dialog = document.getElementById(opener.dataset.dialog);
    opener.hidden = opener.tagName === "BUTTON" && !dialog;
    if (dialog) opener.addEventListener("click", (event) => { event.preventDefault(); dialog.showModal(); });
  }
  const keysOn = find("#keys-on");
  const stored = "feedback-single-keys";
  const singleKeys = () => localStorage.getItem(stored) !== "off";
  if (keysOn) {
    keysOn.checked = singleKeys();
    keysOn.addEventListener("change", () => localStorage.setItem(stored, keysOn.checked ? "on" : "off"));
  }
  const openDialog = (id) => { const dialog = document.getElementById(id); if (dialog) dialog.showModal(); };

  // ---- time: how long the page was in view, and the minimum that the server asks for
  const opened = performance.now();
  let hiddenSince = document.hidden ? opened : null;
  let hidden = 0;
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) hiddenSince = performance.now();
    else if (hiddenSince !== null) { hidden += performance.now() - hiddenSince; hiddenSince = null; }
  });
  const secondsInView = () => (performance.now() - opened - hidden) / 1000;
  const wait = form ? Number(form.dataset.wait) : 0;
  const remaining = () => Math.max(0, wait - (performance.now() - opened) / 1000);
  const save = find("#save");
  if (save && wait > 0) {
    const tick = () => {
      save.setAttribute("aria-disabled", String(remaining() > 0));
      if (remaining() > 0) setTimeout(tick, Math.min(250, remaining() * 1000 + 20));
    };
    tick();
  }

  // ---- saving
  let busy = false;
  const fail = (text) => {
    const message = find("#message");
    message.textContent = text;
    message.hidden = false;
    message.focus({ preventScroll: false });
  };
  const send = async (target, submitter) => {
    if (busy) return;
    if (target === form && submitter !== find("#skip") && remaining() > 0) {
      say(`Please read a little longer: ${Math.ceil(remaining())} s.`);
      return;
    }
    busy = true;
    if (target === form) {
      find("[name=seconds]", form).value = secondsInView().toFixed(1);
      for (const text of all("textarea[name^=edit_]", form)) text.disabled = text.value === text.defaultValue && !text.closest("[data-keep]");
    }
    const fields = new URLSearchParams(new FormData(target, submitter));
    for (const text of all("textarea", target)) text.disabled = false;
    say("Saving …");
    try {
      const reply = await fetch(target.action, { method: "POST", body: fields, headers: { Accept: "application/json" }, redirect: "error" });
      const said = await reply.json();
      if (said.location) { location.assign(said.location); return; }
      say("");
      fail(said.message);
    } catch {
      say("");
      fail("The server does not answer, so nothing is saved yet. Your answer is kept here: press Enter to try again.");
    }
    busy = false;
  };
  for (const target of all("form[method=post][action]")) {
    if (form === null && target.id !== "undo") continue;
    target.addEventListener("submit", (event) => {
      if (!find("#message")) return; // a page without a place for errors posts as usual
      event.preventDefault();
      send(target, event.submitter);
    });
  }
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

  // ---- what is chosen
  const place = (number) => find(`.reply[data-place="${number}"]`);
  const chosen = () => { const radio = find("[name=choice]:checked", form); return radio ? radio.value : null; };
  const strength = () => find("[name=strength]:checked", form);
  const words = { 1: "Reply 1 is better.", 2: "Reply 2 is better.", tie: "A tie.", bad: "Both bad." };
  const asksStrength = form && form.dataset.strength === "yes" && form.dataset.kind === "pair";
  const decided = () => ["1", "2"].includes(chosen());
  const show = () => {
    for (const reply of all(".reply")) reply.classList.toggle("chosen", reply.dataset.place === chosen());
    const strengths = find(".strength");
    if (strengths) {
      strengths.setAttribute("aria-disabled", String(!decided()));
      for (const radio of all("input", strengths)) radio.disabled = !decided();
    }
    if (chosen() === null) return;
    const next = asksStrength && decided() && !strength() ? "How much: 1, 2 or 3?" : "Enter saves.";
    say(`${words[chosen()]} ${next}`);
  };
  const choose = (value) => {
    if (value === chosen() && !asksStrength) { form.requestSubmit(save); return; }
    find(`[name=choice][value="${value}"]`, form).checked = true;
    show();
  };

  // ---- keys by kind: each returns whether it used the key
  const pairKeys = (key) => {
    if (asksStrength && decided() && ["1", "2", "3"].includes(key)) {
      find(`[name=strength][value="${key}"]`, form).checked = true;
      show();
      return true;
    }
    if (asksStrength && key === "Backspace") {
      for (const radio of all("[name=choice], [name=strength]", form)) radio.checked = false;
      show();
      say("Choose again.");
      return true;
    }
    const value = { 1: "1", 2: "2", ArrowLeft: "1", ArrowRight: "2", 0: "tie", b: "bad" }[key];
    if (value) choose(value);
    return Boolean(value);
  };

  const ranked = []; // [place, rank] in the order of the keys
  let equal = false;
  const rankKeys = (key) => {
    if (key === "=" && ranked.length) { equal = true; say("The next one is as good as the last."); return true; }
    if (key === "Backspace" && ranked.length) {
      const [number] = ranked.pop();
      for (const radio of all(`[name=rank_${number}]`, form)) radio.checked = false;
    } else if (/^[1-5]$/.test(key) && Number(key) <= Number(form.dataset.places)) {
      if (ranked.some(([number]) => number === key)) return true;
      const rank = equal ? ranked[ranked.length - 1][1] : ranked.length + 1;
      ranked.push([key, rank]);
      find(`[name=rank_${key}][value="${rank}"]`, form).checked = true;
      equal = false;
    } else return false;
    const rest = Number(form.dataset.places) - ranked.length;
    const order = ranked.map(([number, rank], index) => (index ? (rank === ranked[index - 1][1] ? " = " : " > ") : "") + number).join("");
    say(`${order || "Nothing ranked"}. ${rest ? `${rest} to go.` : "Enter saves."}`);
    return true;
  };

  const scales = form ? all(".rating .scale", form) : [];
  let current = 0;
  const mark = (scroll) => {
    scales.forEach((scale, index) => scale.classList.toggle("current", index === current));
    if (scroll && scales[current]) scales[current].scrollIntoView({ block: "nearest" });
  };
  const rateKeys = (key) => {
    if (key === "Backspace") current = Math.max(0, current - 1);
    else if (/^[1-7]$/.test(key)) {
      if (current >= scales.length) return true;
      find(`input[value="${key}"]`, scales[current]).checked = true;
      current += 1;
      say(current === scales.length ? "All rated. Enter saves." : `${scales.length - current} to go.`);
    } else return false;
    mark(true);
    return true;
  };
  if (form && form.dataset.kind === "ranking" && matchMedia("(hover: hover)").matches) say("Press the numbers of the replies from best to worst.");
  mark(false);
  scales.forEach((scale, index) => scale.addEventListener("focusin", () => { current = index; mark(false); }));

  // ---- keys of every kind
  const improve = () => {
    const details = find(`.improve[data-place="${decided() ? chosen() : 1}"]`) || find(".improve");
    if (!details) return;
    details.open = true;
    find("textarea", details).focus();
  };
  const unfold = () => {
    const boxes = all(".unfold input");
    const open = boxes.some((box) => !box.checked);
    for (const box of boxes) box.checked = open;
    for (const earlier of all("details.earlier")) earlier.open = open;
  };
  const press = (selector) => { const button = find(selector); if (button) button.click(); };
  const focus = (selector) => { const field = find(selector); if (field) field.focus(); };
  const common = {
    s: () => press("#skip"), u: () => press("#undo-button"), e: improve, f: unfold,
    g: () => openDialog("guidelines"), "?": () => openDialog("keys"),
    c: () => focus("#comment"), r: () => focus("[name=reason]"),
  };
  const kinds = { pair: pairKeys, ranking: rankKeys, rating: rateKeys };

  document.addEventListener("keydown", (event) => {
    const target = event.target;
    const text = target.matches("textarea, input[type=text]");
    if (event.key === "Escape" && text) { target.blur(); return; }
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && text && form) { event.preventDefault(); form.requestSubmit(save); return; }
    if (text || event.ctrlKey || event.metaKey || event.altKey || find("dialog[open]")) return;
    if (event.key === "Enter") {
      if (target.closest("a, button, summary")) return;
      event.preventDefault();
      if (form) form.requestSubmit(save);
      else press("#next"); // the one thing to do on a page without an item
      return;
    }
    if (!singleKeys() && event.key !== "?") return;
    if (target.closest("input[type=radio], pre, .scroll") && event.key.startsWith("Arrow")) return; // its own use of the arrows
    if (event.repeat) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const used = form && kinds[form.dataset.kind] ? kinds[form.dataset.kind](key) : false;
    if (used) event.preventDefault();
    else if (common[key]) { event.preventDefault(); common[key](); }
  });

  if (form) { form.addEventListener("change", show); show(); }
  if (find("#message:not([hidden])")) find("#message").focus();
})();
