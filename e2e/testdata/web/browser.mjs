// The browser that the tests of the page drive. The Go test that starts one
// plays the rest of the world: where it has to look or to do something, a word
// is printed and a line is awaited.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

export const { URL: base, SHOTS } = process.env;
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const patience = 60_000;

// The Go test does what the word says, and answers with a line.
export async function look(word) {
	console.log(word);
	const { done, value } = await answers.next();
	assert(!done, "nobody looks any more");
	return value;
}

const browser = await chromium.launch({
	executablePath: process.env.CHROMIUM,
	args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage"],
});

// complaints are what a browser finds wrong with a page: what the policy of
// the page stopped, scripts that failed, anything that talked to the user, and
// whatever was asked of a server that is none of these.
const complaints = [];
const known = [base];

// alsoAt names another server that the browser may ask.
export function alsoAt(address) { known.push(address); }

export async function context(options = {}) {
	const c = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1280, height: 800 }, locale: "en-GB", timezoneId: "UTC", ...options });
	c.setDefaultTimeout(patience);
	c.on("page", (page) => {
		page.on("console", (m) => { if (m.type() === "error" && page.url().startsWith(base) && !/status of 4\d\d/.test(m.text())) complaints.push(`${page.url()}: ${m.text()}`); });
		page.on("pageerror", (e) => complaints.push(`${page.url()}: ${e}`));
		page.on("dialog", (d) => { complaints.push(`${page.url()}: it says ${d.message()}`); d.dismiss(); });
		page.on("request", (r) => { if (!known.some((k) => r.url().startsWith(k))) complaints.push(`${page.url()} asks ${r.url()}`); });
	});
	return c;
}

export async function signedIn(token, options) {
	const page = await (await context(options)).newPage();
	await page.goto(base + "/");
	await page.getByLabel("Token").fill(token);
	await page.getByRole("button", { name: "Sign in" }).click();
	await page.getByRole("heading", { name: "Virtual machines" }).waitFor();
	return page;
}

// check has axe look at a page, in light and dark, and sees that on a phone
// nothing but tables is wider than it.
export async function check(page, name) {
	for (const colorScheme of ["light", "dark"]) {
		await page.emulateMedia({ colorScheme });
		await page.evaluate(axe);
		const { violations } = await page.evaluate(() => window.axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"] }));
		const found = violations.map((v) => `${v.impact} ${v.id}: ${v.nodes.map((n) => n.html.slice(0, 200) + " " + n.failureSummary).join("; ")}`);
		assert.deepEqual(found, [], `${name}, ${colorScheme}`);
	}
	await page.emulateMedia({ colorScheme: "light" });
	const size = page.viewportSize();
	await page.setViewportSize({ width: 360, height: 740 });
	const wide = await page.evaluate(() => document.documentElement.scrollWidth);
	assert(wide <= 360, `${name} is ${wide} wide on a phone`);
	await page.setViewportSize(size);
}

export async function shot(page, name, options = {}) {
	if (!SHOTS) return;
	await page.emulateMedia({ colorScheme: options.dark ? "dark" : "light" });
	await page.setViewportSize({ width: options.width ?? 1100, height: options.height ?? 620 });
	await page.evaluate(() => document.activeElement.blur());
	await page.screenshot({ path: `${SHOTS}/${name}.png` });
	await page.emulateMedia({ colorScheme: "light" });
	await page.setViewportSize({ width: 1280, height: 800 });
}

// done ends the browser, if it found nothing wrong.
export async function done() {
	assert.deepEqual(complaints, []);
	await browser.close();
	console.log("done");
	process.exit(0);
}
