#!/bin/bash
# The main job of jitgate, for real: a real sshd behind the guard, a real ssh
# in front of it, on this kernel, in two network namespaces of their own. The
# machine's own network and firewall are not touched and nothing is left
# behind.
#
# First with signed files alone, then with a control plane that is asked by the
# operator's command line and in the words of Azure's just-in-time API. With
# "play" it only sets up the second, and leaves it running to be played with.
#
#   demo.sh PATH-TO-JITGATE PATH-TO-JITGATE-CONTROL [play]
set -u

usage="usage: demo.sh PATH-TO-JITGATE PATH-TO-JITGATE-CONTROL [play]"
jitgate=$(realpath "${1:?$usage}") control=$(realpath "${2:?$usage}") play=${3:-}
if [ "$(id -u)" != 0 ]; then
	echo "demo: network namespaces need root: run this as root" >&2
	exit 1
fi

vm=jitgate-vm-$$ admin=jitgate-admin-$$
vm_address=10.213.7.1 admin_address=10.213.7.2 other_address=10.213.7.3 control_address=10.213.7.4
dir=$(mktemp -d /tmp/jitgate-demo.XXXXXX)
agent= sshd= plane= fetcher= door= failed=0
made_run_sshd=

cleanup() {
	for pid in $door $agent $sshd $fetcher $plane; do kill -9 "$pid" 2>/dev/null && wait "$pid" 2>/dev/null; done
	ip netns del "$vm" 2>/dev/null
	ip netns del "$admin" 2>/dev/null
	[ -z "$made_run_sshd" ] || rmdir /run/sshd 2>/dev/null
	rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

began=$(date +%s%N)
say() { # MARK TEXT
	local now=$((($(date +%s%N) - began) / 1000000))
	printf '%6d.%03d s  %s %s\n' $((now / 1000)) $((now % 1000)) "$1" "$2"
}
# The seconds that what ends by itself is given longer on a machine where a login
# takes long.
slack=0
# expect open|closed TEXT [SOURCE]: logs in for real and says whether that went
# as it should. Closed means that no TCP connection came about, not that
# something was slow.
expect() {
	local got source=${3:-$admin_address} answer from to wait=5
	[ "$1" = open ] || wait=1 # a dropped packet looks like a host that is not there
	from=$(date +%s%N)
	answer=$(login "$source" $wait 'echo "in from ${SSH_CONNECTION%% *}"' 2>&1)
	to=$((($(date +%s%N) - from) / 1000000))
	case $answer in
	"in from $source") got=open ;;
	*"port 22: Connection timed out"*) got=closed ;;
	*) got="\"$answer\"" ;;
	esac
	if [ "$got" = "$1" ]; then
		say ✓ "$2 ($to ms)"
		[ "$1" = closed ] || slack=$((to * 4 / 1000))
	else
		say ✗ "$2: expected $1, found $got"
		failed=1
	fi
}
wait_until() { # SINCE MILLISECONDS
	local left=$(($2 - ($(date +%s%N) - $1) / 1000000))
	[ $left -le 0 ] || sleep $((left / 1000)).$(printf %03d $((left % 1000)))
}
login() { # SOURCE SECONDS COMMAND
	ip netns exec "$admin" ssh -F none -b "$1" -i "$dir/id" -o BatchMode=yes -o ConnectTimeout="$2" -o IdentitiesOnly=yes \
		-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "root@$vm_address" "$3"
}
start_agent() { # CONFIG
	ip netns exec "$vm" "$jitgate" agent run --config "$1" 2>>"$dir/agent.log" &
	agent=$!
	for _ in $(seq 100); do
		"$jitgate" status --config "$1" >/dev/null 2>&1 && return
		sleep 0.05
	done
	say ✗ "the agent did not start: $(tail -1 "$dir/agent.log")"
	exit 1
}
stop_agent() {
	kill -9 "$agent"
	wait "$agent" 2>/dev/null
	agent=
}
# eventually COMMAND…: until it succeeds, for ten seconds.
eventually() {
	for _ in $(seq 200); do
		"$@" >/dev/null 2>&1 && return
		sleep 0.05
	done
	say ✗ "$*: did not come about"
	exit 1
}
must() { "$@" >>"$dir/setup.log" 2>&1 || { say ✗ "$*: $(tail -1 "$dir/setup.log")"; exit 1; }; }

# Two machines: "vm", which is guarded, and "admin", which wants in.
must ip netns add "$vm"
must ip netns add "$admin"
must ip link add v0 netns "$vm" type veth peer name a0 netns "$admin"
must ip -n "$vm" addr add $vm_address/24 dev v0
must ip -n "$admin" addr add $admin_address/24 dev a0
must ip -n "$admin" addr add $other_address/24 dev a0
must ip -n "$admin" addr add $control_address/24 dev a0
# The control plane and whoever asks it are on one machine here; it shall see
# where they come from as if they were not.
for n in "$vm lo" "$vm v0" "$admin lo" "$admin a0"; do must ip -n "${n% *}" link set "${n#* }" up; done
must ip -n "$admin" route replace local $control_address dev a0 table local proto kernel scope host src $admin_address

# A real sshd on the vm, with keys of its own.
[ -d /run/sshd ] || { mkdir /run/sshd && made_run_sshd=1; }
must ssh-keygen -q -t ed25519 -N '' -f "$dir/hostkey"
must ssh-keygen -q -t ed25519 -N '' -f "$dir/id"
cat >"$dir/sshd_config" <<-END
	ListenAddress $vm_address:22
	HostKey $dir/hostkey
	AuthorizedKeysFile $dir/id.pub
	PermitRootLogin prohibit-password
	StrictModes no
	UsePAM yes
	PrintMotd no
	PidFile none
	Subsystem sftp internal-sftp
END
ip netns exec "$vm" "$(command -v sshd || echo /usr/sbin/sshd)" -D -e -f "$dir/sshd_config" 2>"$dir/sshd.log" &
sshd=$!

for _ in $(seq 200); do # a busy machine takes its time
	grep -qs "Server listening" "$dir/sshd.log" && break
	sleep 0.05
done

# The first act: signed files alone. A realm, a policy for the vm, and an agent
# that guards it.
files_alone() {
	must "$jitgate" trust init --realm demo --out "$dir/keys"
	cat >"$dir/agent.toml" <<-END
		host_id   = "vm"
		mode      = "observe"
		guard     = [22]
		inbox_dir = "$dir/inbox"
		state_dir = "$dir/state"
		socket    = "$dir/agent.sock"
	END
	must "$jitgate" trust install --config "$dir/agent.toml" "$dir/keys/trust.json"
	cat >"$dir/policy.json" <<-END
		{"realm": "demo", "version": 1, "issued": "$(date -u +%FT%TZ)", "expires": "$(date -u -d '+1 day' +%FT%TZ)",
		 "host": {"id": "vm"},
		 "ports": [{"number": 22, "protocol": "TCP", "allowedSourceAddressPrefixes": ["10.213.7.0/24"],
		            "maxRequestAccessDuration": "PT1H", "sessionsAtEnd": "keep"}]}
	END
	must "$jitgate" sign --type policy --key "$dir/keys/policy.key" "$dir/policy.json" -o "$dir/keys/policy.json"

	say · "sshd runs on vm ($vm_address), nothing guards it yet"
	expect open "logged in: the sshd is real and reachable"
	start_agent "$dir/agent.toml"
	cp "$dir/keys/policy.json" "$dir/inbox/.policy.json"
	must mv "$dir/inbox/.policy.json" "$dir/inbox/policy.json"
	say · "jitgate runs on vm and observes: installing changes nothing"
	expect open "logged in as before"

	on_vm() { must login "$admin_address" 5 "$jitgate $* --config $dir/agent.toml"; }
	local trial=$((10 + slack)) term
	on_vm arm --confirm-within ${trial}s
	armed=$(date +%s%N)
	say · "armed through ssh: port 22 drops, and goes back by itself unless that is confirmed"
	expect closed "refused: $other_address has no grant" $other_address
	expect open "a new session from where it was armed comes in"
	on_vm arm confirm
	say · "confirmed: port 22 is guarded for good"
	wait_until $armed $((trial * 1000 + 300))
	expect closed "refused: nobody has a grant, and the time of whoever armed is up"

	term=$((6 + slack))
	must "$jitgate" grant --dir "$dir/keys" --host vm --port 22 --source $admin_address --for ${term}s --reason demo -o "$dir/inbox/grants.json"
	granted=$(date +%s%N)
	for _ in $(seq 100); do
		"$jitgate" status --json --config "$dir/agent.toml" | jq -e '.openings | length > 0' >/dev/null && break
		sleep 0.02
	done
	say · "a grant for $admin_address, $term seconds, signed and dropped into the inbox; the agent says it is open"
	expect open "logged in by ssh from $admin_address"
	expect closed "refused: $other_address has no grant" $other_address
	wait_until $granted $((term * 1000 + 300))
	expect closed "refused: the time is up, the kernel closed the port"

	ip netns exec "$vm" nft flush ruleset 2>>"$dir/setup.log"
	say · "a stranger ran: nft flush ruleset"
	sleep 0.1
	expect closed "still refused"

	stop_agent
	say · "the agent was killed (SIGKILL)"
	expect closed "still refused"
}

# The second act: the same machine follows a control plane instead.
machine=/subscriptions/20ff7fc3-e762-44dd-bd96-b71116dcdc23/resourceGroups/demo/providers/Microsoft.Compute/virtualMachines/vm
jit=/subscriptions/20ff7fc3-e762-44dd-bd96-b71116dcdc23/resourceGroups/demo/providers/Microsoft.Security/locations/here/jitNetworkAccessPolicies/default
api() { # METHOD PATH [BODY]: what az rest or any SDK of Azure sends
	ip netns exec "$admin" curl -sS --fail-with-body --cacert "$dir/plane/tls/ca.pem" -X "$1" \
		-H "Authorization: Bearer $(cat "$dir/plane/admin.token")" -H 'Content-Type: application/json' \
		"https://$control_address:8443$2?api-version=2020-01-01" ${3:+-d "$3"} 2>>"$dir/setup.log"
}
follow_control() {
	ip netns exec "$admin" "$control" serve --data "$dir/plane" --listen $control_address:8443 >>"$dir/plane.log" 2>&1 &
	plane=$!
	eventually api GET "$(dirname "$jit")"
	must api PUT "$jit" '{"kind": "Basic", "properties": {"virtualMachines": [{"id": "'$machine'", "ports": [
		{"number": 22, "protocol": "TCP", "allowedSourceAddressPrefix": "10.213.7.0/24", "maxRequestAccessDuration": "PT3H"}]}]}}'
	say · "a control plane runs on $control_address, made from nothing; its policy guards port 22 of vm"
	mkdir -p "$dir/follower" "$dir/home"
	cat >"$dir/follower.toml" <<-END
		host_id   = "$machine"
		mode      = "enforce"
		inbox_dir = "$dir/follower/inbox"
		state_dir = "$dir/follower/state"
		socket    = "$dir/follower.sock"
		[control]
		identity_dir = "$dir/follower/fetch"
	END
	token=$("$control" join create --vm $machine --data "$dir/plane" | grep -om1 'jgj_[-_A-Za-z0-9]*' | head -1)
	must ip netns exec "$vm" "$jitgate" enroll --control https://$control_address:8443 --token "$token" --config "$dir/follower.toml"
	start_agent "$dir/follower.toml"
	ip netns exec "$vm" "$jitgate" fetch --config "$dir/follower.toml" 2>>"$dir/fetch.log" &
	fetcher=$!
	eventually follows
	say · "vm joined with a token that is good for one machine, once; its agent has the policy"

	# Somebody at "admin", with a home of their own.
	cat >"$dir/ssh_config" <<-END
		Host *
			User root
			IdentityFile $dir/id
			IdentitiesOnly yes
			BatchMode yes
			StrictHostKeyChecking no
			UserKnownHostsFile /dev/null
			LogLevel ERROR
	END
	cat >"$dir/operator" <<-END
		#!/bin/sh
		PATH=$(dirname "$jitgate"):\$PATH HOME=$dir/home XDG_CONFIG_HOME= XDG_CACHE_HOME= exec ip netns exec $admin "\$@"
	END
	chmod +x "$dir/operator"
	must operator login https://$control_address:8443 --ca "$dir/plane/tls/ca.pem" --token-file "$dir/plane/admin.token" --name demo
	must operator vm add $machine --os Linux --address $vm_address
}
follows() { "$jitgate" status --json --config "$dir/follower.toml" | jq -e '.documents[] | select(.document == "policy" and .version > 0)'; }
operator() { "$dir/operator" "$jitgate" "$@"; }
initiated() { api GET "$jit" | jq -e '[.properties.requests[].virtualMachines[].ports[].status] | any(. == "Initiated")'; }
nothing_open() { "$jitgate" status --json --config "$dir/follower.toml" | jq -e '.openings == [] or .openings == null'; }

ask_control() {
	local from answer term=$((8 + slack))
	expect closed "refused: nobody asked"
	from=$(date +%s%N)
	answer=$(operator ssh vm --reason demo -- -F "$dir/ssh_config" 'echo "in from ${SSH_CONNECTION%% *}"' 2>>"$dir/setup.log")
	if [ "$answer" = "in from $admin_address" ]; then
		say ✓ "jitgate ssh vm: asked, opened, logged in, in one command ($((($(date +%s%N) - from) / 1000000)) ms)"
	else
		say ✗ "jitgate ssh vm: $answer $(tail -1 "$dir/setup.log")"
		failed=1
	fi
	eventually nothing_open
	expect closed "refused: the session is over, and the port was given back"

	must api POST "$jit/initiate" '{"virtualMachines": [{"id": "'$machine'", "ports": [{"number": 22, "endTimeUtc": "'$(date -u -d "+$term seconds" +%FT%TZ)'"}]}], "justification": "demo"}'
	granted=$(date +%s%N)
	eventually initiated
	say · "asked by POST …/initiate, for where the call came from; the agent says it is open"
	expect open "logged in by ssh from $admin_address"
	expect closed "refused: $other_address did not ask" $other_address
	operator activity vm >"$dir/activity"
	kill -9 $plane
	wait $plane 2>/dev/null
	plane=
	say · "the control plane was killed (SIGKILL)"
	wait_until $granted $((term * 1000 + 1000))
	expect closed "refused: the time is up, and the kernel needs nobody to tell it"
	stop_agent
}

# left_running shows the page on this machine's own loopback address, which is
# all that reaches out of the namespaces, and waits until it is ended.
left_running() {
	cat >"$dir/door_config" <<-END
		HostKey $dir/hostkey
		AuthorizedKeysFile $dir/id.pub
		StrictModes no
		UsePAM no
		PidFile none
	END
	chmod 600 "$dir/id"
	ssh -N -F "$dir/ssh_config" -o ExitOnForwardFailure=yes -L 127.0.0.1:8443:$control_address:8443 \
		-o ProxyCommand="ip netns exec $admin $(command -v sshd || echo /usr/sbin/sshd) -i -e -f $dir/door_config 2>>$dir/sshd.log" door 2>>"$dir/setup.log" &
	door=$!
	eventually curl -sS --fail --cacert "$dir/plane/tls/ca.pem" https://localhost:8443/readyz
	cat <<-END

		The page:          https://localhost:8443/ui/  (its certificate is its own: $dir/plane/tls/ca.pem)
		Sign in with:      $(cat "$dir/plane/admin.token")
		The command line:  $dir/operator $jitgate vm list
		                   $dir/operator $jitgate ssh vm -- -F $dir/ssh_config
		What "My IP" is:   $admin_address, from where ssh comes in as $dir/operator ssh -F $dir/ssh_config $vm_address
		Stop it:           Ctrl-C, or kill $$; nothing is left behind
	END
	wait $door
}

if [ "$play" = play ]; then
	follow_control
	left_running
	exit 0
fi
files_alone
follow_control
ask_control

echo
echo "What the control plane recorded:"
sed 's/^/  /' "$dir/activity"
echo
echo "What the machine recorded ($dir/state/audit and $dir/follower/state/audit, gone in a moment):"
jq -r '"  \(.seq)  \(.time[11:23])  \(.event)  \(.message)"' "$dir"/state/audit/*.jsonl "$dir"/follower/state/audit/*.jsonl

if [ $failed != 0 ]; then
	echo "demo: a step did not hold" >&2
	tail -n 5 "$dir"/agent.log "$dir"/sshd.log >&2
fi
exit $failed
