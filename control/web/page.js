// What a page does by itself: it follows what happens, counts down, and copies.
// Everything else works without this.
"use strict";

const shown = new WeakMap(); // what the server last said of an element, as text

// Live pages: the server sends the page anew when it is another one, and what
// is marked as changing is put in the place of what was there. Nothing that
// somebody is typing into is taken away.
function replaceLive(text) {
	const fresh = new DOMParser().parseFromString(text, "text/html");
	for (const was of document.querySelectorAll("[data-live]")) {
		const now = fresh.getElementById(was.id);
		if (!now || now.innerHTML === shown.get(was)) continue;
		const focus = document.activeElement;
		if (was.contains(focus) && focus.matches("input, select, textarea")) continue;
		const index = was.contains(focus) ? focusable(was).indexOf(focus) : -1;
		shown.set(was, now.innerHTML);
		was.replaceChildren(...[...now.childNodes].map((n) => document.importNode(n, true)));
		if (index >= 0) focusable(was)[index]?.focus();
		if (now.dataset.says && now.dataset.says !== was.dataset.says) {
			was.dataset.says = now.dataset.says;
			document.getElementById("says").textContent = now.dataset.says;
		}
	}
	enliven();
}

function focusable(element) {
	return [...element.querySelectorAll("a[href], button, input, select, textarea, [tabindex]")];
}

function follow(path) {
	const stream = new EventSource("/ui/live?at=" + encodeURIComponent(path));
	stream.onmessage = (e) => replaceLive(JSON.parse(e.data));
	stream.addEventListener("gone", () => {
		stream.close();
		location.reload();
	});
}

// Time left, instead of a time of day.
function countDown() {
	for (const time of document.querySelectorAll("time[data-until]")) {
		const left = Math.round((new Date(time.dateTime) - Date.now()) / 1000);
		time.title ||= time.textContent;
		time.textContent = left <= 0 ? "time is up" : spell(left) + " left";
	}
}

function spell(seconds) {
	const h = Math.floor(seconds / 3600), m = Math.floor(seconds / 60) % 60;
	if (h > 0) return h + " h " + m + " min";
	return m > 0 ? m + " min" : seconds + " s";
}

// Buttons that copy are there only where that works.
function enliven() {
	if (navigator.clipboard) {
		for (const button of document.querySelectorAll("button[data-copy][hidden]")) {
			button.hidden = false;
		}
	}
	countDown();
}

document.addEventListener("click", async (e) => {
	const button = e.target.closest("button[data-copy]");
	if (!button) return;
	try {
		await navigator.clipboard.writeText(button.dataset.copy);
		button.textContent = "Copied";
		document.getElementById("says").textContent = "Copied: " + button.dataset.copy;
	} catch {
		button.textContent = "Not copied";
	}
	setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

// Who writes a range means the range.
document.addEventListener("input", (e) => {
	if (e.target.name?.startsWith("range.")) {
		document.getElementsByName(e.target.name.replace("range.", "source."))[0].value = e.target.value ? "range" : "mine";
	}
});

for (const live of document.querySelectorAll("[data-live]")) {
	shown.set(live, live.innerHTML);
}
enliven();
setInterval(countDown, 1000);
if (document.body.dataset.follow) follow(document.body.dataset.follow);
