// The matrix of pairs as a grid: one tab stop, arrow keys from cell to cell, and the chosen pair in words above it.
(() => {
  const table = document.getElementById("matrix"), out = document.getElementById("pair");
  const rows = [...table.querySelectorAll("tbody tr[id]")].map(tr => ({ tr, head: tr.cells[0], cells: [...tr.cells].slice(1) }));
  const order = rows.map(row => ({ id: row.tr.id, title: row.head.textContent, ...row.head.dataset }));
  let at = [0, 1];

  const add = (tag, ...parts) => { const made = document.createElement(tag); made.append(...parts); return made; };
  const tell = (r, c) => {
    const row = order[r], column = order[c], cell = rows[r].cells[c], [first, second] = +row.at <= +column.at ? [row, column] : [column, row];
    if (r === c) { out.replaceChildren(add("b", row.title), add("p", "The same technique; only pairs of two were asked for.")); return; }
    const reason = cell.dataset.r && document.getElementById("reason-" + cell.dataset.r).dataset, state = reason ? reason.state : "works";
    const told = [add("b", `${first.title}, then ${second.title}: ${cell.textContent}`)];
    if (reason) {
      const says = reason.says.replaceAll("{first}", first.name).replaceAll("{second}", second.name);
      told.push(add("p", (reason.on ? `On ${reason.on.replaceAll(" ", ", ")}: ` : "") + says, " ", link(cell.dataset.r)));
    }
    const helpers = state === "needs" ? [first, second].map(each => each.with).filter(Boolean) : [];
    if (["works", "needs"].includes(state)) told.push(add("p", add("code", ["elvi run", ...helpers, first.id, second.id].join(" "))));
    out.replaceChildren(...told);
  };
  const link = number => { const a = add("a", "All pairs of this reason"); a.href = "#reason-" + number; return a; };
  const go = (r, c, focus = true) => {
    rows[at[0]].cells[at[1]].tabIndex = -1; at = [r, c];
    const cell = rows[r].cells[c]; cell.tabIndex = 0; out.hidden = false; tell(r, c);
    if (focus) cell.focus({ preventScroll: true }), cell.scrollIntoView({ block: "nearest", inline: "nearest" });
  };
  const place = cell => { const tr = cell.closest("tr"), r = rows.findIndex(row => row.tr === tr); return r < 0 ? null : [r, rows[r].cells.indexOf(cell)]; };

  for (const row of rows) for (const cell of row.cells) cell.tabIndex = -1;
  table.setAttribute("role", "grid"); go(...at, false);
  table.addEventListener("click", event => { const cell = event.target.closest("tbody td"); if (cell) go(...place(cell)); });
  table.addEventListener("keydown", event => {
    const last = rows.length - 1, [r, c] = at, cell = event.target.closest("tbody td");
    if (!cell || event.altKey || event.metaKey) return;
    const to = {
      ArrowUp: [Math.max(0, r - 1), c], ArrowDown: [Math.min(last, r + 1), c], ArrowLeft: [r, Math.max(0, c - 1)], ArrowRight: [r, Math.min(last, c + 1)],
      Home: [event.ctrlKey ? 0 : r, 0], End: [event.ctrlKey ? last : r, last], PageUp: [0, c], PageDown: [last, c],
    }[event.key];
    if (to) { event.preventDefault(); go(...to); }
  });
})();
