// Papers side by side. The address holds the chosen ids; the column of each is a script that is loaded when it is chosen.
(() => {
  const $ = (s, r = document) => r.querySelector(s), form = $("#compare"), input = $("#compare-add"), out = $("#compared"), notice = $("#compare-notice");
  const here = document.currentScript.src, most = +form.dataset.most, title = document.title;
  const names = new Map([...$("#compare-all").options].map(option => [option.value, option.textContent]));
  const REPORTED = "Reported by the authors", MEASURED = "Measured here";
  let ids = [], turn = 0;

  const add = (tag, set = {}, ...parts) => { const made = Object.assign(document.createElement(tag), set); made.append(...parts); return made; };
  const html = (tag, text, set = {}) => { const made = add(tag, set); made.innerHTML = text; return made; }; // escaped by the builder
  const load = id => window.elviColumns?.[id] ? Promise.resolve() : new Promise((done, failed) => {
    document.head.append(add("script", { src: new URL(`../compare/columns/${id}.js`, here), onload: done, onerror: failed }));
  });

  // ---- the table: sections in one order, a row for every key that a chosen column has --------------
  const together = (id, column) => {
    const others = ids.filter(other => other !== id);
    if (!column.pairs) return add("td", {}, "–");
    return add("td", {}, add("ul", {}, ...others.map(other => {
      if (!window.elviColumns[other].pairs) return add("li", {}, `${names.get(other)} does not run here`);
      const orders = column.pairs[other] || [["", "", "works", ""]], same = orders.every(order => order[2] === orders[0][2]);
      return add("li", {}, ...(same ? orders.slice(0, 1) : orders).flatMap(([first, mark, words, sentence]) => [
        add("i", { className: "mk " + mark, ariaHidden: "true" }), `${same ? "with" : first === id ? "before" : "after"} ${names.get(other)}: ${words}`,
        ...(sentence ? [add("small", {}, sentence)] : []),
      ]));
    })));
  };
  const table = () => {
    const columns = ids.map(id => window.elviColumns[id]), made = add("table", { className: "cmp" }), body = add("tbody");
    made.style.setProperty("--cols", ids.length); made.setAttribute("aria-label", "Comparison");
    const roles = (element, role) => { element.setAttribute("role", role); return element; }; // some are lost where rows become lists
    const row = (head, cells) => roles(add("tr", {}, roles(head, "rowheader"), ...cells.map((cell, i) => {
      cell.prepend(add("span", { className: "lb" }, names.get(ids[i]))); cell.dataset.stage = columns[i].stage; return roles(cell, "cell");
    })), "row");
    made.append(roles(add("thead", {}, roles(add("tr", {}, roles(add("td"), "cell"), ...columns.map(column => {
      const a = add("a", { href: column.url }, column.name); return roles(add("th", { scope: "col" }, a), "columnheader");
    })), "row")), "rowgroup"), roles(body, "rowgroup"));
    columns[0].sections.forEach(([section], s) => {
      const rows = new Map();
      columns.forEach((column, i) => { for (const [key, head, cell] of column.sections[s][1]) rows.set(key, rows.get(key) || { head, cells: [] }).get(key).cells[i] = cell; });
      if (!rows.size) return;
      const head = add("th", { scope: "rowgroup", colSpan: ids.length + 1 }, section);
      if (section === REPORTED) head.append(add("span", { className: "src reported" }, "reported"));
      if (section === MEASURED) head.append(add("span", { className: "src measured" }, "measured"));
      body.append(roles(add("tr", { className: "grp" }, roles(head, "rowheader")), "row"));
      for (const { head, cells } of rows.values()) body.append(row(html("th", head, { scope: "row" }), columns.map((_, i) => html("td", cells[i] || "–"))));
      if (!s && ids.length > 1) body.append(row(add("th", { scope: "row" }, "With the others"), ids.map((id, i) => together(id, columns[i]))));
    });
    if (location.protocol === "file:") for (const a of made.querySelectorAll("a[href^='../']")) a.href = a.getAttribute("href").replace(/\/(?=#|$)/, "/index.html");
    return roles(made, "table");
  };
  const paint = async () => {
    const mine = ++turn;
    $("#compare-pills").replaceChildren(...ids.map(id => {
      const pill = add("button", { type: "button", className: "pill", onclick: () => change(ids.filter(other => other !== id), true) }, names.get(id));
      pill.setAttribute("aria-label", "Remove " + names.get(id)); return pill;
    }));
    for (const button of document.querySelectorAll("[data-add]")) button.disabled = ids.includes(button.dataset.add) || ids.length >= most;
    document.title = ids.length ? `${ids.map(id => names.get(id)).join(", ")}: ${title}` : title;
    try { await Promise.all(ids.map(load)); } catch { say("A column could not be loaded: try again."); return; }
    if (mine !== turn) return;
    const scroll = add("div", { className: "scroll", tabIndex: 0 }, ...(ids.length ? [table()] : []));
    scroll.setAttribute("role", "region"); scroll.setAttribute("aria-label", "Side by side");
    out.replaceChildren(...(ids.length ? [scroll] : []));
  };

  // ---- the address: every choice is a step back --------------------------------------------------
  const say = words => { notice.textContent = words; notice.hidden = !words; };
  const change = (next, back) => {
    ids = next; say("");
    history.pushState(null, "", ids.length ? "?ids=" + ids.join(",") : location.pathname);
    paint(); if (back) ($(".pill", form) || input).focus();
  };
  const choose = id => {
    if (ids.includes(id)) say(`${names.get(id)} is there already.`);
    else if (ids.length >= most) say(`At most ${most} stand side by side: remove one first.`);
    else change([...ids, id]);
  };
  const read = () => {
    const asked = [...new Set((new URLSearchParams(location.search).get("ids") || "").split(",").filter(Boolean))];
    const known = asked.filter(id => names.has(id)), lost = asked.filter(id => !names.has(id));
    ids = known.slice(0, most);
    say([lost.length && `The link asks for ${lost.join(", ")}, which is not in the catalog.`, known.length > most && `Only the first ${most} stand here; left out: ${known.slice(most).map(id => names.get(id)).join(", ")}.`].filter(Boolean).join(" "));
    paint();
  };
  form.onsubmit = event => {
    event.preventDefault();
    const words = input.value.trim().toLowerCase(), all = [...names];
    const [id] = all.find(([id, name]) => id === words || name.toLowerCase() === words) || all.find(([, name]) => words && name.toLowerCase().startsWith(words)) || [];
    if (id) { input.value = ""; choose(id); } else if (words) say(`No paper has the name ${input.value.trim()}: choose one of the list.`);
  };
  for (const head of document.querySelectorAll(".cmp-all tbody th")) {
    const button = add("button", { type: "button", className: "btn", onclick: () => choose(head.parentNode.id) }, "Add");
    button.setAttribute("aria-label", "Add " + head.textContent); button.dataset.add = head.parentNode.id; head.append(button);
  }
  form.hidden = false; addEventListener("popstate", read); read();
})();
