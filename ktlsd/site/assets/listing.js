"use strict";
(() => {
  // Of a longer list only the groups of rows near the window stay in the document: a browser is slow with all of them.
  const LONG_LIST = 2000;
  const NEAR_THE_WINDOW = "1500px";
  const table = document.querySelector("table");
  const search = document.getElementById("search");
  const status = document.getElementById("status");
  const none = document.getElementById("none");
  const viewer = document.querySelector("dialog");
  const stage = document.getElementById("stage");
  const counter = document.getElementById("counter");
  const heads = [...table.querySelectorAll("th")];
  const summary = status.textContent;
  const number = new Intl.NumberFormat("en");
  const order = new Intl.Collator(undefined, { numeric: true });
  const comparisons = {
    name: (a, b) => order.compare(a.name, b.name),
    size: (a, b) => a.size - b.size,
    date: (a, b) => (a.date < b.date ? -1 : a.date > b.date ? 1 : 0),
  };
  const link = (element) => element.querySelector("a");
  // A browser that runs in UTC needs no second time.
  const local = new Intl.DateTimeFormat("sv", { dateStyle: "short", timeStyle: "short" });
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const inUtc = zone === "UTC" || zone === "Etc/UTC";
  const rowsOf = new WeakMap();
  let groups = [...table.querySelectorAll("tbody:not(#up)")];
  const rowsInGroup = groups[0].rows.length;
  const items = groups.flatMap((group) => Array.from(group.rows, read));
  let shown = items;

  function read(row) {
    const [name, size, date] = row.cells;
    return {
      row,
      name: name.textContent,
      words: name.textContent.toLowerCase(),
      folder: link(name).getAttribute("href").endsWith("/"),
      size: Number(size.firstElementChild?.value ?? 0),
      date: date.firstElementChild.dateTime,
    };
  }

  const observer = new IntersectionObserver(
    (changes) => {
      for (const { target, isIntersecting } of changes) {
        target.replaceChildren(...(isIntersecting ? rowsOf.get(target) : []));
        if (isIntersecting) addLocalTimes(target);
      }
    },
    { rootMargin: NEAR_THE_WINDOW },
  );

  function addLocalTimes(group) {
    if (inUtc) return;
    for (const row of group.rows) {
      const cell = row.cells[2];
      if (cell.lastElementChild.localName === "small") continue;
      const small = document.createElement("small");
      small.textContent = `${local.format(new Date(cell.firstElementChild.dateTime))} local`;
      cell.append(small);
    }
  }

  function draw() {
    observer.disconnect();
    for (const group of groups) group.remove();
    groups = [];
    for (let first = 0; first < shown.length; first += rowsInGroup) {
      const rows = shown.slice(first, first + rowsInGroup).map((item) => item.row);
      const group = document.createElement("tbody");
      group.style.setProperty("--rows", rows.length);
      rowsOf.set(group, rows);
      groups.push(group);
      if (shown.length <= LONG_LIST) {
        group.append(...rows);
        addLocalTimes(group);
      }
    }
    table.append(...groups);
    none.hidden = shown.length > 0;
    if (shown.length > LONG_LIST) for (const group of groups) observer.observe(group);
  }

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = items.filter((item) => words.every((word) => item.words.includes(word)));
    status.textContent = words.length ? `${number.format(shown.length)} of ${number.format(items.length)} match` : summary;
    draw();
  }

  function sort(head) {
    const { key, first } = head.dataset;
    const was = head.getAttribute("aria-sort");
    const way = was === null ? first : was === "ascending" ? "descending" : "ascending";
    const sign = way === "ascending" ? 1 : -1;
    items.sort(
      (a, b) =>
        b.folder - a.folder ||
        (a.folder && key === "size" ? 0 : sign * comparisons[key](a, b)) ||
        order.compare(a.name, b.name),
    );
    const query = (name, ascending) => `?sort=${name}&order=${ascending ? "asc" : "desc"}`;
    for (const other of heads) {
      other.removeAttribute("aria-sort");
      link(other).search = query(other.dataset.key, other.dataset.first === "ascending");
    }
    head.setAttribute("aria-sort", way);
    link(head).search = query(key, way !== "ascending");
    history.replaceState(null, "", query(key, way === "ascending"));
    filter();
  }

  // What the browser can show in the page; other files open by their links.
  const players = { image: null, audio: document.createElement("audio"), video: document.createElement("video") };
  const kindOf = (item) => link(item.row).dataset.type?.split("/")[0];
  const shows = (item) => {
    const player = players[kindOf(item)];
    return player === null || Boolean(player?.canPlayType(link(item.row).dataset.type));
  };

  let viewed;
  function empty() {
    // Without a source, a player stops its download too.
    for (const player of stage.querySelectorAll("audio, video")) {
      player.removeAttribute("src");
      player.load();
    }
    stage.replaceChildren();
  }

  function show(item) {
    const kind = kindOf(item);
    const all = shown.filter(shows);
    const target = link(viewer);
    viewed = item;
    target.href = link(item.row).href;
    target.textContent = item.name;
    counter.textContent = `${number.format(all.indexOf(item) + 1)} of ${number.format(all.length)}`;
    empty();
    const element = document.createElement(kind === "image" ? "img" : kind);
    if (kind === "image") element.alt = "";
    else {
      element.controls = element.autoplay = true;
      element.setAttribute("aria-label", item.name);
    }
    element.src = target.href;
    const opens = !viewer.open;
    if (opens) viewer.showModal();
    stage.append(element);
    // A link or a player with the focus would take the keys.
    if (opens || !viewer.contains(document.activeElement)) viewer.focus();
  }

  function step(distance) {
    const all = shown.filter(shows);
    show(all[(all.indexOf(viewed) + distance + all.length) % all.length]);
  }

  function press(key) {
    const player = stage.querySelector("audio, video");
    if (key === "ArrowLeft") step(-1);
    else if (key === "ArrowRight") step(1);
    else if (key === "Home") show(shown.find(shows));
    else if (key === "End") show(shown.findLast(shows));
    else if (key === " " && player) player.paused ? player.play() : player.pause();
    else return false;
    return true;
  }

  const plain = (event) => !(event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);
  table.addEventListener("click", (event) => {
    const { target } = event;
    if (!plain(event)) return;
    if (target.matches("th a")) sort(target.parentElement);
    else {
      const icon = target.closest("td a[data-type] > :first-child");
      const item = icon && items.find(({ row }) => row.contains(icon));
      if (!item || !shows(item)) return;
      show(item);
    }
    event.preventDefault();
  });
  viewer.addEventListener("click", ({ target }) => {
    const { action } = target.dataset;
    if (action === "close") viewer.close();
    else if (action) step(Number(action));
  });
  viewer.addEventListener("close", empty);
  viewer.addEventListener("keydown", (event) => {
    // A player that has the focus takes keys itself, and a button the space.
    if (event.target.matches("audio, video") || (event.key === " " && event.target.matches("button, a"))) return;
    if (plain(event) && press(event.key)) event.preventDefault();
  });
  search.addEventListener("input", filter);
  search.addEventListener("keydown", ({ key }) => {
    if (key !== "Escape") return;
    search.value = "";
    filter();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || !plain(event) || viewer.open || event.target.matches("input")) return;
    event.preventDefault();
    search.focus();
  });
  document.body.classList.add("ready");
  if (search.value) filter();
  else if (items.length > LONG_LIST) draw();
  else for (const group of groups) addLocalTimes(group);
})();
