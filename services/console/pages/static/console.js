// Theme and keyboard of the console. Plain JavaScript, served as it is.
(() => {
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];
  const stored = () => localStorage.getItem("theme") || "system";
  const apply = (theme) => {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  };
  apply(stored());

  const changeTheme = () => {
    const next = themes[(themes.indexOf(stored()) + 1) % themes.length];
    localStorage.setItem("theme", next);
    apply(next);
    say(`Theme: ${next}`);
  };

  const say = (text) => {
    let note = document.getElementById("said");
    if (!note) {
      note = Object.assign(document.createElement("div"), { id: "said" });
      note.setAttribute("role", "status");
      document.body.append(note);
    }
    note.textContent = text;
    clearTimeout(say.timer);
    say.timer = setTimeout(() => note.remove(), 2500);
  };

  const showKeys = () => {
    document.getElementById("key-list")?.remove();
    const dialog = Object.assign(document.createElement("dialog"), { id: "key-list" });
    const title = Object.assign(document.createElement("h2"), { textContent: "Keyboard" });
    const list = document.createElement("dl");
    const lines = [
      ...[...document.querySelectorAll("[data-key]")].map((a) => [`g ${a.dataset.key}`, a.textContent]),
      ["/", "First filter"],
      ["t", "Theme: system, light, dark"],
      ["?", "This list"],
    ];
    for (const [keys, meaning] of lines) {
      list.append(
        Object.assign(document.createElement("dt"), { textContent: keys }),
        Object.assign(document.createElement("dd"), { textContent: meaning }),
      );
    }
    const close = Object.assign(document.createElement("button"), { textContent: "Close" });
    close.onclick = () => dialog.close();
    dialog.onclose = () => dialog.remove();
    dialog.append(title, list, close);
    document.body.append(dialog);
    dialog.showModal();
  };

  document.addEventListener("click", (event) => {
    if (event.target.id === "theme") changeTheme();
    if (event.target.id === "keys") showKeys();
  });

  let afterG = 0;
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (Date.now() - afterG < 1500) {
      afterG = 0;
      const entry = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
      if (entry) {
        event.preventDefault();
        entry.click();
      }
      return;
    }
    if (event.key === "g") afterG = Date.now();
    else if (event.key === "t") changeTheme();
    else if (event.key === "?") showKeys();
    else if (event.key === "/") {
      const first = document.querySelector(".filters input:not([type=hidden]), .filters select");
      if (first) {
        event.preventDefault();
        first.focus();
      }
    }
  });
})();
