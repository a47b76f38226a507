// Drives every operation of just-in-time access with Azure's own SDK, as
// anybody would write it. Told by the environment: ENDPOINT, TOKEN, READER (a
// token that may only read), SUBSCRIPTION, GROUP, MACHINE (a resource id) and
// PAGED (how many policies the subscription has, more than one page).
import assert from "node:assert/strict";
import { SecurityCenter } from "@azure/arm-security";

const { ENDPOINT, TOKEN, READER, SUBSCRIPTION, GROUP, MACHINE, PAGED } = process.env;
const location = "westeurope";

function client(token, subscription = SUBSCRIPTION) {
  const credential = { getToken: async () => ({ token, expiresOnTimestamp: Date.now() + 3600_000 }) };
  const c = new SecurityCenter(credential, subscription, { endpoint: ENDPOINT, retryOptions: { maxRetries: 0 } });
  return c.jitNetworkAccessPolicies;
}

const jit = client(TOKEN);

async function all(pages) {
  const found = [];
  for await (const p of pages) found.push(p);
  return found;
}

async function refused(promise, status, code, message) {
  await assert.rejects(promise, (err) => {
    assert.equal(err.name, "RestError");
    assert.equal(err.statusCode, status);
    assert.equal(err.code, code);
    assert.match(err.message, message);
    return true;
  });
}

const rules = {
  kind: "Basic",
  virtualMachines: [
    {
      id: MACHINE,
      ports: [
        { number: 22, protocol: "*", allowedSourceAddressPrefix: "*", maxRequestAccessDuration: "PT3H" },
        { number: 3389, protocol: "TCP", allowedSourceAddressPrefixes: ["198.51.100.0/24", "192.0.2.10"], maxRequestAccessDuration: "P1D" },
      ],
    },
  ],
};

// What is not there.
await refused(jit.get(GROUP, location, "js"), 404, "PolicyNotFound", /js/);
await jit.delete(GROUP, location, "js"); // 204

// Create, get, edit.
const made = await jit.createOrUpdate(GROUP, location, "js", rules);
assert.equal(made.name, "js");
assert.equal(made.location, location);
assert.equal(made.type, "Microsoft.Security/locations/jitNetworkAccessPolicies");
assert.equal(made.id, `/subscriptions/${SUBSCRIPTION}/resourceGroups/${GROUP}/providers/Microsoft.Security/locations/${location}/jitNetworkAccessPolicies/js`);
assert.equal(made.provisioningState, "Succeeded");
assert.deepEqual(made.virtualMachines, rules.virtualMachines);
assert.deepEqual(made.requests, []);
const got = await jit.get(GROUP, location, "js");
assert.deepEqual(got.virtualMachines, rules.virtualMachines);

// Request, and see it. Dates go out with three digits.
const end = new Date(Date.now() + 30 * 60_000);
const asked = await jit.initiate(GROUP, location, "js", {
  virtualMachines: [{ id: MACHINE, ports: [{ number: 22, endTimeUtc: end, allowedSourceAddressPrefix: "203.0.113.7" }] }],
  justification: "patching",
});
assert.equal(asked.justification, "patching");
assert.equal(asked.requestor, "admin");
assert.ok(asked.startTimeUtc instanceof Date);
const [port] = asked.virtualMachines[0].ports;
assert.equal(port.status, "Initiating");
assert.equal(port.statusReason, "UserRequested");
assert.equal(port.allowedSourceAddressPrefix, "203.0.113.7");
assert.equal(port.endTimeUtc.getTime(), end.getTime());

// Without a source it is where the call comes from.
const mine = await jit.initiate(GROUP, location, "js", {
  virtualMachines: [{ id: MACHINE, ports: [{ number: 22, endTimeUtc: end }] }],
});
assert.equal(mine.virtualMachines[0].ports[0].allowedSourceAddressPrefix, "127.0.0.1");
assert.equal((await jit.get(GROUP, location, "js")).requests.length, 2);

// Every list, over pages.
const everywhere = await all(jit.list());
assert.equal(everywhere.length, Number(PAGED) + 1);
assert.equal(new Set(everywhere.map((p) => p.id)).size, everywhere.length);
assert.equal((await all(jit.listByRegion(location))).length, Number(PAGED) + 1);
assert.equal((await all(jit.listByResourceGroup(GROUP))).length, 1);
assert.equal((await all(jit.listByResourceGroupAndRegion(GROUP, location))).length, 1);
assert.deepEqual(await all(jit.listByRegion("nowhere")), []);

// Every refusal.
const ask = (p, vm = MACHINE) => jit.initiate(GROUP, location, "js", { virtualMachines: [{ id: vm, ports: [p] }] });
const bounds = /not a subset of policy '.*js'/;
const soon = new Date(Date.now() + 600_000);
await refused(ask({ number: 23, endTimeUtc: soon }), 400, "InvalidInitiateInput", bounds);
await refused(ask({ number: 22, endTimeUtc: new Date(Date.now() + 4 * 3600_000) }), 400, "InvalidInitiateInput", bounds);
await refused(ask({ number: 3389, endTimeUtc: soon, allowedSourceAddressPrefix: "203.0.113.7" }), 400, "InvalidInitiateInput", bounds);
await refused(ask({ number: 22, endTimeUtc: soon }, MACHINE + "-other"), 400, "InvalidInitiateInput", bounds);
await refused(jit.initiate(GROUP, location, "missing", { virtualMachines: [{ id: MACHINE, ports: [{ number: 22, endTimeUtc: soon }] }] }), 404, "PolicyNotFound", /missing/);
await refused(client(READER).createOrUpdate(GROUP, location, "js", rules), 403, "AuthorizationFailed", /jitNetworkAccessPolicies\/write/);
await refused(client(READER).delete(GROUP, location, "js"), 403, "AuthorizationFailed", /jitNetworkAccessPolicies\/delete/);
await refused(client("jgt_nobody").get(GROUP, location, "js"), 401, "InvalidAuthenticationToken", /token/);
assert.equal((await jit.get(GROUP, location, "js")).requests.length, 2);

// Delete, twice.
await jit.delete(GROUP, location, "js");
await jit.delete(GROUP, location, "js");
await refused(jit.get(GROUP, location, "js"), 404, "PolicyNotFound", /js/);
console.log("done");
