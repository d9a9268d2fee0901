"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// Tabs: the address names the data set, so that a link can too.
const tabs = all('[role="tab"]');
const show = (tab) => {
  for (const one of tabs) {
    const chosen = one === tab;
    one.setAttribute("aria-selected", chosen);
    one.tabIndex = chosen ? 0 : -1;
    document.getElementById(one.getAttribute("aria-controls")).hidden = !chosen;
  }
};
const fromAddress = () => show(tabs.find((tab) => tab.hash === location.hash) ?? tabs[0]);
for (const [place, tab] of tabs.entries()) {
  tab.addEventListener("click", (event) => {
    event.preventDefault();
    history.replaceState(null, "", tab.hash);
    show(tab);
  });
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(place + step + tabs.length) % tabs.length];
    next.click();
    next.focus();
  });
}
window.addEventListener("hashchange", fromAddress);
if (tabs.length) fromAddress();

// Tables: sort by a heading, filter by words, move among cells with the arrow keys.
const number = (text) => (/^[-−]?[\d.]/.test(text) ? parseFloat(text.replace("−", "-")) : NaN);
const dialog = document.getElementById("more");
const explain = (name, facts) => {
  const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const link = ([text, href]) => {
    const safe = /^https?:/.test(href) || !/^[a-z]+:/i.test(href);
    return safe ? Object.assign(element("a", text), { href }) : element("span", text);
  };
  dialog.querySelector("h2").textContent = name;
  dialog.querySelector("dl").replaceChildren(...Object.entries(facts).map(([head, value]) => {
    const part = document.createElement("div");
    const said = element("dd", Array.isArray(value) ? "" : value);
    const isLink = head === "Paper";
    if (isLink) said.append(link(value));
    else if (Array.isArray(value)) said.append(...value.map((one) => element("p", one)));
    else if (head === "Command" || head === "Spec") said.replaceChildren(element("code", value));
    part.append(element("dt", head), said);
    return part;
  }));
  dialog.showModal();
  tip.hidden = true;
};
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
const tip = document.getElementById("tip");
const order = new Intl.Collator("en", { numeric: true }).compare;
for (const sheet of all(".sheet")) {
  const body = sheet.querySelector("tbody");
  const heads = all("thead th", sheet);
  const rows = [...body.rows];
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const [search, select, count] = ["input", "select", "output"].map((x) => sheet.querySelector(x));

  const filter = () => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const fits = wanted.every((word) => words.get(row).includes(word));
      row.hidden = !fits || (select.value !== "" && row.dataset.by !== select.value);
      shown += !row.hidden;
    }
    count.value = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  };
  // Columns: a style of the table's own hides those that are not ticked.
  const style = sheet.querySelector("style");
  const boxes = all(".choose input", sheet);
  const few = boxes.map((box) => box.checked);
  const choose = () => {
    const off = boxes.filter((box) => !box.checked);
    const places = off.map((box) => `#${sheet.id} tr > :nth-child(${box.value})`);
    style.textContent = off.length ? `${places.join(", ")} { display: none }` : "";
    pin();
  };
  for (const box of boxes) box.addEventListener("input", choose);
  for (const button of all("[data-columns]", sheet)) {
    button.addEventListener("click", () => {
      boxes.forEach((box, n) => { box.checked = button.dataset.columns === "all" || few[n]; });
      choose();
    });
  }
  const ranges = sheet.querySelector(".ranges");
  ranges.addEventListener("input", () => { sheet.classList.toggle("bare", !ranges.checked); pin(); });

  // Pinned columns: each is as far from the left as those before it are wide.
  const table = sheet.querySelector("table");
  const pin = () => {
    let left = 0;
    heads.filter((head) => head.classList.contains("pin")).forEach((head, n) => {
      table.style.setProperty(`--left-${n + 1}`, `${left}px`);
      left += head.getBoundingClientRect().width;
    });
  };
  new ResizeObserver(pin).observe(table);

  const more = JSON.parse(sheet.querySelector('script[type="application/json"]').textContent);
  rows.forEach((row, n) => {
    const name = row.querySelector(".name");
    name.querySelector("button").addEventListener("click", () => explain(name.textContent, more[n]));
  });

  search.addEventListener("input", filter);
  select.addEventListener("input", filter);

  heads.forEach((head, column) => {
    head.firstChild.addEventListener("click", () => {
      // a metric begins with its better end, text with its first
      const first = head.textContent.includes("↑") ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const way = head.getAttribute("aria-sort") === first ? second : first;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", way);
      const sign = way === "ascending" ? 1 : -1;
      const keys = new Map(rows.map((row) => [row, row.cells[column].textContent]));
      const numeric = head.classList.contains("number") || head.textContent === "Rank";
      const compare = (a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        if (!numeric) return sign * order(x, y);
        const [u, v] = [number(x), number(y)];
        if (isNaN(u) || isNaN(v)) return isNaN(u) - isNaN(v); // what has no number comes last
        return sign * (u - v);
      };
      body.append(...[...rows].sort(compare));
    });
  });

  body.addEventListener("click", (event) => {
    if (!event.target.closest("button")) event.target.closest("th, td")?.focus();
  });
  body.addEventListener("keydown", (event) => {
    const cell = event.target.closest("th, td");
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [0, 0];
    if (!cell || (!down && !right)) return;
    event.preventDefault();
    let row = cell.parentNode;
    if (down) do row = down > 0 ? row.nextElementSibling : row.previousElementSibling; while (row?.hidden);
    const next = row?.cells[cell.cellIndex + right];
    if (!next) return;
    next.tabIndex = -1;
    next.focus();
  });
}
for (const body of all("tbody")) {
  if (!body.rows.length) continue;
  body.rows[0].cells[0].tabIndex = 0;
  for (const row of body.rows) for (const cell of row.cells) if (cell.tabIndex < 0) cell.tabIndex = -1;
}

// One tooltip, for the pointer and the focus: what a heading means, what is behind a number.
const text = (cell) => {
  const head = cell.closest("table").tHead.rows[0].cells[cell.cellIndex];
  if (cell === head || cell.parentNode === head.parentNode) return cell.dataset.tip;
  const row = cell.parentNode;
  if (!head.classList.contains("number")) return cell.dataset.tip ?? "";
  const range = cell.dataset.range;
  const starts = head.textContent.startsWith("NMI") ? "range over starts " : "95% interval ";
  const kind = range?.startsWith("±") ? "" : starts;
  const value = `${head.textContent.slice(0, -2)} ${cell.textContent}${range ? `, ${kind}${range}` : ""}`;
  return [value, cell.dataset.tip, row.dataset.tip].filter(Boolean).join("\n");
};
const point = (event) => {
  const cell = event.target.closest?.("table th, table td");
  const words = cell && text(cell);
  tip.hidden = !words;
  for (const old of all("[aria-describedby=tip]")) old.removeAttribute("aria-describedby");
  if (!words) return;
  tip.textContent = words;
  event.target.setAttribute("aria-describedby", "tip");
  const box = cell.getBoundingClientRect();
  const [width, height] = [tip.offsetWidth, tip.offsetHeight];
  const left = Math.min(Math.max(8, box.left + box.width / 2 - width / 2), innerWidth - width - 8);
  tip.style.left = `${left}px`;
  tip.style.top = `${box.top > height + 12 ? box.top - height - 6 : box.bottom + 6}px`;
};
document.addEventListener("pointerover", point);
document.addEventListener("focusin", point);
document.addEventListener("scroll", () => { tip.hidden = true; }, true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
