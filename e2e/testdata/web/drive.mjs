// Drives the page in a real browser. The Go test that starts this plays the
// machine: where it has to look, a word is printed and a line is awaited.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const { URL: base, ADMIN, ALICE, CAROL, VM, SHOTS } = process.env;
const axe = await readFile(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const answers = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const patience = 20_000;

// The Go test looks, and says that it has.
async function look(word) {
	console.log(word);
	const { done } = await answers.next();
	assert(!done, "nobody looks any more");
}

const browser = await chromium.launch({
	executablePath: process.env.CHROMIUM,
	args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run", "--disable-dev-shm-usage"],
});

// complaints are what a browser finds wrong with a page: what the policy of
// the page stopped, scripts that failed, and anything that talked to the user.
const complaints = [];

async function context(options = {}) {
	const c = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1280, height: 800 }, locale: "en-GB", timezoneId: "UTC", ...options });
	c.setDefaultTimeout(patience);
	c.on("page", (page) => {
		page.on("console", (m) => { if (m.type() === "error" && !/status of 4\d\d/.test(m.text())) complaints.push(`${page.url()}: ${m.text()}`); });
		page.on("pageerror", (e) => complaints.push(`${page.url()}: ${e}`));
		page.on("dialog", (d) => { complaints.push(`${page.url()}: it says ${d.message()}`); d.dismiss(); });
		page.on("request", (r) => { if (!r.url().startsWith(base)) complaints.push(`${page.url()} asks ${r.url()}`); });
	});
	return c;
}

async function signedIn(token, options) {
	const page = await (await context(options)).newPage();
	await page.goto(base + "/");
	await page.getByLabel("Token").fill(token);
	await page.getByRole("button", { name: "Sign in" }).click();
	await page.getByRole("heading", { name: "Virtual machines" }).waitFor();
	return page;
}

// check has axe look at a page, in light and dark, and sees that on a phone
// nothing but tables is wider than it.
async function check(page, name) {
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

async function shot(page, name, options = {}) {
	if (!SHOTS) return;
	await page.emulateMedia({ colorScheme: options.dark ? "dark" : "light" });
	await page.setViewportSize({ width: options.width ?? 1100, height: options.height ?? 620 });
	await page.evaluate(() => document.activeElement.blur());
	await page.screenshot({ path: `${SHOTS}/${name}.png` });
	await page.emulateMedia({ colorScheme: "light" });
	await page.setViewportSize({ width: 1280, height: 800 });
}

// evil is script where somebody forgot that it is text.
const evil = `done <img src=x onerror=alert(1)>"'</script><script>alert(2)</script>`;

const state = (page) => page.locator("#state");

// --- sign in, by keyboard alone ---
const stranger = await (await context()).newPage();
await stranger.goto(base + "/ui/vms?tab=NotConfigured");
await check(stranger, "sign-in");
await stranger.keyboard.type("jgt_wrong");
await stranger.keyboard.press("Enter");
await stranger.getByRole("alert").waitFor();
await check(stranger, "sign-in, refused");
await stranger.getByLabel("Token").focus();
await stranger.keyboard.type(ADMIN);
await stranger.keyboard.press("Enter");
const admin = stranger;
await admin.waitForURL(base + "/ui/vms?tab=NotConfigured");
await admin.keyboard.press("Tab");
assert.equal(await admin.evaluate(() => document.activeElement.textContent), "Skip to the content");
await admin.keyboard.press("Enter");
assert.equal(await admin.evaluate(() => document.activeElement.id), "main");
const [cookie] = await admin.context().cookies();
assert(cookie.secure && cookie.httpOnly && cookie.sameSite === "Lax" && cookie.name === "__Host-jitgate", JSON.stringify(cookie));
assert.equal(await admin.evaluate(() => document.cookie), "", "script sees the cookie");

// --- enable ---
await check(admin, "not configured");
await admin.getByRole("link", { name: "web1", exact: true }).click();
await admin.getByRole("heading", { name: "Just-in-time access is off" }).waitFor();
await check(admin, "connect page, off");
await admin.goBack();
await admin.getByRole("checkbox", { name: "web1" }).check();
await admin.getByRole("button", { name: "Enable JIT on VMs" }).click();
await admin.getByRole("heading", { name: "Just-in-time access to web1" }).waitFor();
await check(admin, "enable");
const location = admin.getByLabel("Location");
if (await location.count()) await location.fill("westeurope");
const ssh = admin.getByRole("group", { name: "Port 22 SSH" });
assert(await ssh.getByRole("checkbox").isChecked(), "Linux has no port 22 by default");
await ssh.getByLabel("Allowed source IPs").fill("10.77.0.0/24");
await shot(admin, "enable");
await ssh.getByLabel("Allowed source IPs").fill("10.77.0.5/24");
await admin.getByRole("button", { name: "Save" }).click();
await admin.getByText("has host bits set").last().waitFor();
await check(admin, "enable, refused");
await ssh.getByLabel("Allowed source IPs").fill("10.77.0.0/24");
await admin.getByRole("button", { name: "Save" }).click();
await admin.getByRole("heading", { name: "web1" }).waitFor();
await look("guarded");

// --- request access ---
const alice = await signedIn(ALICE);
await alice.getByRole("row", { name: /web1/ }).getByText("closed").waitFor();
await check(alice, "configured");
await alice.getByRole("checkbox", { name: "web1" }).check();
await alice.getByRole("button", { name: "Request access" }).click();
await alice.getByRole("heading", { name: "Request access" }).waitFor();
await check(alice, "request");
// What the policy refuses is refused here, at its field.
await alice.getByRole("textbox", { name: "IP range" }).fill("198.51.100.0/24");
await alice.getByLabel("Why").fill("INC-4711");
await alice.getByRole("button", { name: "Open ports" }).click();
await alice.locator("#error-0-22").waitFor();
assert.match(await alice.locator("#error-0-22").innerText(), /10\.77\.0\.0\/24 allowed/);
await check(alice, "request, refused");
await shot(alice, "request-refused");
await alice.getByRole("textbox", { name: "IP range" }).fill("");
await alice.getByLabel("Why").fill("INC-4711: the disk of web1 is full");
await alice.getByRole("button", { name: "Open ports" }).click();
// It opens while one looks, with no page loaded anew.
await state(alice).waitFor();
await alice.evaluate(() => { window.here = true; });
await state(alice).getByText("open", { exact: true }).waitFor();
await alice.getByText(/left$/).first().waitFor();
assert(await alice.evaluate(() => window.here), "the page was loaded anew");
assert.match(await alice.getByRole("status").innerText(), /web1 port 22: open/);
await look("open");
const request = alice.url();
await check(alice, "request that is open");
// How to connect, to be copied.
await alice.context().grantPermissions(["clipboard-read", "clipboard-write"], { origin: base });
await alice.getByRole("button", { name: "Copy: jitgate ssh web1" }).click();
assert.equal(await alice.evaluate(() => navigator.clipboard.readText()), "jitgate ssh web1");
await shot(alice, "open", { height: 760 });
// The list of machines knows.
const list = await signedIn(ALICE);
await list.getByRole("row", { name: /web1/ }).getByText("open", { exact: true }).waitFor();
await shot(list, "machines");
await shot(list, "machines-phone", { width: 390, height: 700, dark: true });
await list.evaluate(() => { window.here = true; });

// --- extend and revoke ---
await alice.getByLabel("From now on for").selectOption("PT3H");
await alice.getByRole("button", { name: "Extend" }).click();
await state(alice).getByText(/^2 h 59 min left$|^3 h 0 min left$/).first().waitFor();
await alice.locator("#revoke-comment").fill("done");
await alice.getByRole("button", { name: "Close now" }).click();
await state(alice).getByText("closed: revoked").waitFor();
await list.getByRole("row", { name: /web1/ }).locator("td[id^=open]").getByText("closed").waitFor();
assert(await list.evaluate(() => window.here), "the list was loaded anew");
await look("closed");

// --- approval ---
await look("approval");
await alice.goto(base + "/ui/vm?id=" + encodeURIComponent(VM));
await check(alice, "connect page");
await alice.getByRole("link", { name: "Request access" }).click();
await alice.getByRole("button", { name: "Open ports" }).click();
await alice.locator("#why-error").waitFor();
await alice.getByLabel("Why").fill("INC-4712: the web server hangs");
await alice.getByRole("button", { name: "Open ports" }).click();
await state(alice).getByText("waits for approval").waitFor();
await check(alice, "request that waits");
const carol = await signedIn(CAROL);
await carol.getByRole("link", { name: "Requests" }).click();
await carol.getByRole("link", { name: "Waiting for approval" }).click();
await check(carol, "waiting");
await carol.locator("#list a").first().click();
await carol.getByLabel("Comment").fill("for an hour");
await carol.getByLabel("For at most").selectOption("PT1H");
await check(carol, "approve");
await shot(carol, "approve");
await carol.getByRole("button", { name: "Approve" }).click();
await state(alice).getByText("open", { exact: true }).waitFor();
await alice.getByText("Approved by carol").waitFor();
await look("approved");

// --- what happened ---
await admin.goto(request);
await admin.getByText("grant.opened").first().waitFor();
// Was it used? The machine says so.
await admin.locator(".notice").getByText(/^web1: port 22 was open for .*1 connection/).waitFor();
await check(admin, "request, with its log");
await shot(admin, "used", { height: 720 });
await admin.goto(base + "/ui/activity?scope=" + encodeURIComponent(VM));
await admin.getByText("request.approved").first().waitFor();
await check(admin, "activity");
await shot(admin, "activity", { height: 720 });
const download = admin.waitForEvent("download");
await admin.getByRole("button", { name: "Download as CSV" }).click();
const csv = await readFile(await (await download).path(), "utf8");
assert(csv.startsWith("seq,time,event,"), csv.slice(0, 200));
assert(csv.includes("INC-4711") && csv.includes("INC-4712"), "the download lacks what was said");
await admin.getByLabel("Event").fill("request.revoked");
await admin.getByRole("button", { name: "Show" }).click();
await admin.getByRole("cell", { name: "done" }).waitFor();
assert.equal(await admin.getByText("request.approved").count(), 0);
await admin.goto(base + "/ui/timeline?span=6h");
await admin.locator("svg rect").nth(1).waitFor({ state: "attached" });
await check(admin, "timeline");
await shot(admin, "timeline");
await admin.goto(base + "/ui/nothing");
await check(admin, "no such page");
await admin.goto(base + "/ui/ports?vm=" + encodeURIComponent(VM));
await check(admin, "edit");
await admin.goto(base + "/ui/vms?tab=Unsupported");
await check(admin, "unsupported");
await admin.getByRole("button", { name: "Sign out" }).click();
await admin.getByLabel("Token").waitFor();
await admin.goto(request);
await admin.getByLabel("Token").waitFor();

// --- without script ---
const plain = await signedIn(CAROL, { javaScriptEnabled: false });
await plain.goto(request.replace(/\/[^/]+$/, "") + "?show=open");
await plain.locator("#list a").first().click();
await plain.locator("#revoke-comment").fill(evil);
await plain.getByRole("button", { name: "Close now" }).click();
await state(plain).getByText("closed: revoked").waitFor();
await state(alice).getByText("closed: revoked").waitFor();
await look("over");
// What was said is text, in a browser that does run scripts.
for (const path of ["/ui/activity", plain.url().slice(base.length)]) {
	await carol.goto(base + path);
	assert.equal((await carol.getByText(evil).first().innerText()).trim(), evil);
}

assert.deepEqual(complaints, []);
await browser.close();
console.log("done");
process.exit(0);
