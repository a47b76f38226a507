// Every flow of the page, with a real machine behind it.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { base, check, context, done, look, shot, signedIn } from "./browser.mjs";

const { ADMIN, ALICE, CAROL, VM } = process.env;

// evil is script where somebody forgot that it is text.
const evil = `done <img src=x onerror=alert(1)>"'</script><script>alert(2)</script>`;

const state = (page) => page.locator("#state");

const door = await (await context()).newPage();
await door.goto(base + "/");
await shot(door, "sign-in", { height: 420 });

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
// It opens while one looks, with no page loaded anew: the machine hears of it
// when the page is there, however fast it is.
await look("cut off");
await alice.getByRole("button", { name: "Open ports" }).click();
await state(alice).waitFor();
await alice.evaluate(() => { window.here = true; });
await look("back");
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

// --- approval, which an administrator sets ---
await admin.getByRole("link", { name: "Settings" }).click();
await admin.getByRole("link", { name: /^Approval under default/ }).click();
await admin.getByLabel("Open nothing before others have agreed").check();
await admin.getByLabel("How many have to agree").fill("none");
await admin.getByRole("button", { name: "Save" }).click();
await admin.getByRole("alert").waitFor();
await check(admin, "approval terms, refused");
await admin.getByRole("link", { name: "Cancel" }).click();
await admin.getByRole("link", { name: /^Approval under default/ }).click();
await admin.getByLabel("Open nothing before others have agreed").check();
await admin.getByLabel("How many have to agree").fill("1");
await admin.getByLabel("Who asks has to say why").check();
await check(admin, "approval terms");
await shot(admin, "approval-terms", { height: 720 });
await admin.getByRole("button", { name: "Save" }).click();
await admin.getByText("1 × SecurityAdmin").waitFor();
await check(admin, "approval");
await alice.goto(base + "/ui/vm?id=" + encodeURIComponent(VM));
await check(alice, "connect page");
await shot(alice, "connect", { height: 720 });
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
await shot(carol, "waiting", { height: 420 });
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
// --- settings ---
await admin.goto(base + "/ui/settings/scopes");
await check(admin, "scopes");
await admin.getByLabel("Subscription or resource group").fill(VM.split("/").slice(0, 5).join("/"));
await admin.getByLabel("Why").fill("moves to another datacentre");
await admin.getByRole("button", { name: "Switch off", exact: true }).click();
await admin.getByRole("cell", { name: "moves to another datacentre" }).waitFor();
await check(admin, "scopes, one is off");
await shot(admin, "scopes", { height: 640 });
await admin.getByRole("button", { name: /^Switch on at/ }).click();
await admin.getByText("on", { exact: true }).waitFor();
await admin.goto(base + "/ui/settings/roles");
await check(admin, "roles");
await admin.getByLabel("To", { exact: true }).fill("Dora");
await admin.getByLabel("Where", { exact: true }).fill("/");
await admin.getByRole("button", { name: "Give" }).click();
await admin.getByRole("alert").waitFor();
await check(admin, "roles, refused");
await admin.getByLabel("To", { exact: true }).fill("local:dora");
await admin.getByLabel("Role", { exact: true }).selectOption("Reader");
await admin.getByRole("button", { name: "Give" }).click();
const given = admin.getByRole("row", { name: /local:dora/ });
await given.waitFor();
await shot(admin, "roles", { height: 860 });
await given.getByRole("button", { name: /^Take away Reader/ }).click();
await given.waitFor({ state: "detached" });
await admin.goto(base + "/ui/settings/signing");
await admin.getByText("Nothing waits for a signature.").waitFor();
await check(admin, "signing");
await shot(admin, "signing", { height: 480 });
await admin.goto(base + "/ui/settings/joining");
await check(admin, "joining");
// The command to join is copied, and a machine that uses it is gone from the
// list while one looks.
await admin.getByLabel("For the machine, or the machines in").fill(process.env.OTHER);
await admin.getByRole("button", { name: "Make token" }).click();
const made = admin.getByRole("status", { name: /^The token/ });
await made.waitFor();
await check(admin, "joining, with a token");
await shot(admin, "joining", { height: 900 });
await admin.context().grantPermissions(["clipboard-read", "clipboard-write"], { origin: base });
await made.getByRole("button", { name: /^Copy: jitgate enroll/ }).click();
const enrol = await admin.evaluate(() => navigator.clipboard.readText());
await admin.locator("#list").getByRole("button", { name: /^Revoke/ }).waitFor();
await admin.evaluate(() => { window.here = true; });
await look("join: " + enrol);
await admin.locator("#list").getByText("There is none.").waitFor();
assert(await admin.evaluate(() => window.here), "the page was loaded anew");
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

await done();
