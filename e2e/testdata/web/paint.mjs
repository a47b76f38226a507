// Measures the first contentful paint of addresses, by the browser's own
// entries, in turns. Prints a line of milliseconds for each.
import { chromium } from "playwright-core";

const { URL: base, TOKEN, ROUNDS, CHROMIUM } = process.env;
const paths = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--no-first-run"] });
const page = await (await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1280, height: 800 } })).newPage();
await page.goto(base + "/ui/sign-in");
await page.getByLabel("Token").fill(TOKEN);
await page.getByRole("button", { name: "Sign in" }).click();
await page.waitForURL(/\/ui\/vms/);
const took = paths.map(() => []);
for (let round = -2; round < Number(ROUNDS); round++) { // two to warm up
	for (const [i, path] of paths.entries()) {
		await page.goto(base + path);
		const paint = await page.evaluate(() => new Promise((found) => {
			new PerformanceObserver((list) => {
				for (const e of list.getEntriesByName("first-contentful-paint")) found(e.startTime);
			}).observe({ type: "paint", buffered: true });
		}));
		if (round >= 0) took[i].push(paint);
	}
}
for (const all of took) console.log(all.join(" "));
await browser.close();
