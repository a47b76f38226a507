# Shows on a real Windows machine what could not be shown without one. About ten
# minutes and a restart, for an administrator, on a machine that may be cut off:
# a test machine with a console, with Remote Desktop on, and not reached by that
# alone. A second machine tries to get in.
#
#   powershell -ExecutionPolicy Bypass -File acceptance.ps1 -Msi C:\jitgate-1.2.3-amd64.msi -Newer C:\jitgate-1.2.4-amd64.msi -Second 192.0.2.7
#   ... and the same with -AfterRestart, once the machine has restarted
#
# Both installers come from make msi VERSION=v...; -Second is the address by which
# this machine sees the second one. Each step says what is expected. Where the
# script can tell, it says PASS or FAIL; where it says LOOK, look, mostly from the
# second machine, where THIS is this machine's name or address. The realm is made
# here, for this test, and goes with it. msiexec /x takes everything away again,
# whenever this ends.
#Requires -Version 5.1
#Requires -RunAsAdministrator
param(
    [Parameter(Mandatory = $true)][string]$Msi,
    [Parameter(Mandatory = $true)][string]$Newer,
    [Parameter(Mandatory = $true)][string]$Second,
    [switch]$AfterRestart
)

$ErrorActionPreference = 'Stop'
$data = Join-Path $env:ProgramData 'jitgate'
$exe = Join-Path $env:ProgramFiles 'jitgate\jitgate.exe'
$work = Join-Path $env:SystemDrive 'jitgate-acceptance'
$eventSource = 'HKLM:\SYSTEM\CurrentControlSet\Services\EventLog\Application\jitgate'
$Msi = (Resolve-Path $Msi).Path
$Newer = (Resolve-Path $Newer).Path
$failed = 0
$step = if ($AfterRestart) { 13 } else { 0 }
$code = 0

function Step($what, $expected) {
    $script:step++
    Write-Host ''
    Write-Host ("{0}. {1}" -f $script:step, $what)
    Write-Host ("   Expected: {0}" -f $expected)
}

function Check($what, $ok) {
    if ($ok) {
        Write-Host ("   PASS  {0}" -f $what)
    } else {
        Write-Host ("   FAIL  {0}" -f $what)
        $script:failed++
    }
}

function Look($what, $expected) {
    Write-Host ("   LOOK  {0}" -f $what)
    Write-Host ("         Expected: {0}" -f $expected)
    $answer = Read-Host '         Is it so? y, or what you see instead'
    Check 'as you say' ($answer -match '^\s*y')
}

# Runs a program, shows what it says, and returns that. What it writes to standard
# error is no error of this script.
function Run($program, [string[]]$words) {
    $ErrorActionPreference = 'Continue'
    $text = (& $program $words 2>&1 | ForEach-Object { "$_" }) -join "`n"
    $script:code = $LASTEXITCODE
    foreach ($line in ($text -split "`n")) { Write-Host ("         {0}" -f $line) }
    return $text
}

function Jitgate { return Run $exe $args }

# What jitgate says as JSON; $null if it says nothing.
function Ask {
    $ErrorActionPreference = 'Continue'
    $text = (& $exe $args 2>$null) -join "`n"
    if (-not $text) { return $null }
    return ConvertFrom-Json $text
}

# Waits up to a minute for something to be so.
function Until($done) {
    for ($i = 0; $i -lt 60; $i++) {
        if (& $done) { return $true }
        Start-Sleep -Seconds 1
    }
    return $false
}

function Answers { return ($null -ne (Ask status --json)) }

function Document($name) {
    $s = Ask status --json
    if ($null -eq $s) { return $null }
    return $s.documents | Where-Object { $_.document -eq $name }
}

function InForce($name) {
    $d = Document $name
    return ($null -ne $d) -and ($d.version -ge 1)
}

function Openings {
    $s = Ask status --json
    if ($null -eq $s) { return -1 }
    return @($s.openings).Count
}

# Runs the installer, waits for it, and returns its exit code.
function Install([string]$words) {
    return (Start-Process -FilePath msiexec.exe -ArgumentList $words -Wait -PassThru).ExitCode
}

function FiltersOfJitgate {
    $file = Join-Path $env:TEMP 'jitgate-filters.xml'
    & netsh.exe wfp show filters "file=$file" | Out-Null
    $count = @(Select-String -Path $file -Pattern '<name>jitgate').Count
    Remove-Item $file
    return $count
}

function RulesOfJitgate {
    return @(Get-NetFirewallRule -Group jitgate -ErrorAction SilentlyContinue)
}

function Utc($time) {
    return $time.ToUniversalTime().ToString("yyyy-MM-dd'T'HH:mm:ss'Z'", [Globalization.CultureInfo]::InvariantCulture)
}

$try = 'From the second machine: Test-NetConnection THIS -Port 3389'

if (-not $AfterRestart) {
    Step 'Installs silently' 'exit code 0, both services there, the agent running in mode observe with the filtering platform as its firewall'
    Check 'Remote Desktop listens on 3389' (@(Get-NetTCPConnection -State Listen -LocalPort 3389 -ErrorAction SilentlyContinue).Count -gt 0)
    $result = Install "/i `"$Msi`" /qn HOSTID=win-test REALM=test"
    Check "msiexec ends with 0, here $result" ($result -eq 0)
    Check 'the agent answers' (Until { Answers })
    $s = Ask status --json
    Check "host win-test, here $($s.host); mode observe, here $($s.mode); firewall not none, here $($s.firewall)" (($s.host -eq 'win-test') -and ($s.mode -eq 'observe') -and ($s.firewall -ne 'none'))
    Check 'service jitgate-fetch is there' ($null -ne (Get-Service jitgate-fetch -ErrorAction SilentlyContinue))
    Check 'the realm is remembered' ((Get-ItemProperty 'HKLM:\SOFTWARE\jitgate').Realm -eq 'test')
    Write-Host ("         signature of the program: {0} (Valid, if the installers were made with a certificate this machine trusts)" -f (Get-AuthenticodeSignature $exe).Status)

    Step 'The doctor' 'what Windows Firewall does at 3389; neither filtering-platform-missing nor windows-firewall-unread'
    Jitgate doctor | Out-Null
    $ids = (Ask doctor --json).findings | ForEach-Object { $_.id }
    Check "it saw both: $($ids -join ', ')" ((@($ids).Count -gt 0) -and ($ids -notcontains 'filtering-platform-missing') -and ($ids -notcontains 'windows-firewall-unread'))

    Step 'Services' 'RESTART after 1000 milliseconds, SID type UNRESTRICTED, BFE among the dependencies, the path in quotes'
    Check 'jitgate restarts after a failure' ((Run 'sc.exe' @('qfailure', 'jitgate')) -match '1000')
    Check 'the fetcher has a name of its own' ((Run 'sc.exe' @('qsidtype', 'jitgate-fetch')) -match 'UNRESTRICTED')
    $config = Run 'sc.exe' @('qc', 'jitgate')
    Check 'jitgate depends on BFE' ($config -match 'BFE')
    Check 'the path is in quotes' ($config -match '"[^"]*jitgate\.exe" agent run')

    Step 'Access lists' 'SYSTEM (S-1-5-18), Administrators (S-1-5-32-544) and, but for state, the fetcher (S-1-5-80-...); nobody else, nothing inherited'
    $sid = [Security.Principal.SecurityIdentifier]
    $fetcher = (New-Object Security.Principal.NTAccount 'NT SERVICE\jitgate-fetch').Translate($sid).Value
    foreach ($dir in @($data, "$data\inbox", "$data\state", "$data\fetch")) {
        $rules = (Get-Acl $dir).GetAccessRules($true, $true, $sid)
        $names = @($rules | ForEach-Object { $_.IdentityReference.Value } | Sort-Object -Unique)
        $may = @('S-1-5-18', 'S-1-5-32-544')
        if ($dir -notlike '*\state') { $may += $fetcher }
        $others = @($names | Where-Object { $may -notcontains $_ })
        $inherited = @($rules | Where-Object { $_.IsInherited })
        Check "$dir names $($names -join ', ')" (($others.Count -eq 0) -and ($inherited.Count -eq 0) -and ($names.Count -eq $may.Count))
    }

    Step 'Kills the agent, and suspends the next' 'the service manager has another one answer, within seconds of the first and within two minutes of the second'
    function Agent { return (Get-CimInstance Win32_Service -Filter "Name='jitgate'").ProcessId }
    function Another($before) { return (Until { $now = Agent; ($now -ne 0) -and ($now -ne $before) -and (Answers) }) }
    $before = Agent
    Run 'taskkill.exe' @('/f', '/pid', $before) | Out-Null
    Check 'another process answers' (Another $before)
    $before = Agent
    Add-Type -Namespace Jitgate -Name Native -MemberDefinition '[DllImport("ntdll.dll")] public static extern int NtSuspendProcess(IntPtr process);'
    Check 'it is suspended' ([Jitgate.Native]::NtSuspendProcess((Get-Process -Id $before).Handle) -eq 0)
    Check 'the watchdog ended it, and another process answers' ((Another $before) -or (Another $before))

    Step 'Documents' 'trust and policy in force; what everybody may write, and what is a link, is refused, and what was in force stays'
    New-Item -ItemType Directory -Force $work | Out-Null
    Jitgate trust init --realm test --out "$work\keys" | Out-Null
    $now = Get-Date
    [IO.File]::WriteAllText("$work\policy.json", (@'
{"realm":"test","version":1,"issued":"ISSUED","expires":"EXPIRES","host":{"id":"win-test"},
 "ports":[{"number":3389,"protocol":"TCP","allowedSourceAddressPrefixes":["*"],"maxRequestAccessDuration":"PT1H","sessionsAtEnd":"cut"}]}
'@ -replace 'ISSUED', (Utc $now) -replace 'EXPIRES', (Utc $now.AddDays(1))))
    Jitgate sign --type policy --key "$work\keys\policy.key" "$work\policy.json" -o "$work\keys\policy.json" | Out-Null
    Jitgate trust install "$work\keys\trust.json" | Out-Null
    Restart-Service jitgate
    Check 'trust is in force' (Until { InForce trust })
    Jitgate inbox put "$work\keys\policy.json" | Out-Null
    Check 'the policy is in force' (Until { InForce policy })
    Run 'icacls.exe' @("$data\inbox\policy.json", '/grant', '*S-1-1-0:M') | Out-Null
    Check 'it is refused once everybody may write it' (Until { (Document policy).refusal -match 'may be changed by S-1-1-0' })
    Check 'and stays in force' (InForce policy)
    Run 'icacls.exe' @("$data\inbox\policy.json", '/remove', '*S-1-1-0') | Out-Null
    Run 'cmd.exe' @('/c', 'mklink', "$data\inbox\grants.json", "$work\keys\trust.json") | Out-Null
    Check 'a link is refused' (Until { (Document grants).refusal -match 'is a link to elsewhere' })
    Remove-Item "$data\inbox\grants.json"

    Step 'The Event Log' 'event 1013 of jitgate: a sentence, a line of JSON, and no complaint about a missing description'
    $entry = Get-WinEvent -FilterHashtable @{ LogName = 'Application'; ProviderName = 'jitgate'; Id = 1013 } -MaxEvents 1 -ErrorAction SilentlyContinue
    Check 'a document was admitted' ($null -ne $entry)
    Write-Host ("         {0}" -f $entry.Message)
    Check 'it has its text' ($entry.Message -match '^\S+ version 1 is in force\s+\{.*"document\.admitted"')

    Step 'Who may ask' 'nobody who is no administrator'
    Look 'In a prompt that is NOT elevated: jitgate status' 'an error that says: Access is denied, and to run this in a prompt opened as administrator'
    Look 'In a PowerShell that is NOT elevated: New-Object IO.Pipes.NamedPipeServerStream ''ProtectedPrefix\Administrators\other''' 'an error: access to the path is denied'

    Step 'Arms, and does not confirm' '3389 is closed to the second machine, and open again by itself after a minute'
    Look $try 'TcpTestSucceeded : True, for the guard only observes'
    Check 'armed: what is not granted is dropped on 3389/tcp' ((Jitgate arm --confirm-within '60s') -match 'armed: .* 3389/tcp')
    $s = Ask status --json
    Check 'mode enforce, on trial' (($s.mode -eq 'enforce') -and ($null -ne $s.trial))
    Look "$try (within a minute)" 'TcpTestSucceeded : False'
    Check 'a minute later it observes again' ((Until { (Ask status --json).mode -eq 'observe' }) -or (Until { (Ask status --json).mode -eq 'observe' }))
    Look $try 'TcpTestSucceeded : True'

    Step 'Arms for good, and grants' '3389 is open to the second machine and to nobody else, who gets in is seen, and Windows Firewall shows one rule of the group jitgate'
    Jitgate arm | Out-Null
    Check 'confirmed' ((Jitgate arm confirm) -match 'the guard drops for good')
    $filters = FiltersOfJitgate
    Check "filters of jitgate are there, here $filters" ($filters -gt 0)
    Jitgate grant --dir "$work\keys" --host win-test --port 3389 --source $Second --for '30m' --reason acceptance -o "$work\grants.json" | Out-Null
    Jitgate inbox put "$work\grants.json" | Out-Null
    Check 'one opening' (Until { (Openings) -eq 1 })
    Check 'one rule, and it is on' (Until { @(RulesOfJitgate | Where-Object { "$($_.Enabled)" -eq 'True' }).Count -eq 1 })
    Look "From the second machine open a desktop: mstsc /v:THIS. From a third one, if there is one: Test-NetConnection THIS -Port 3389" 'a desktop, or its sign-in. The third: False'
    Check 'the grant was used' (Until { (Ask status --json).openings[0].use.outcome -eq 'used' })

    Step 'Stops the agent' 'the desktop ends, for the policy says cut, and nobody gets in until the agent is back'
    Stop-Service jitgate
    Look "The desktop on the second machine; then $try" 'it has ended; TcpTestSucceeded : False'
    Start-Service jitgate
    Check 'the opening is back' (Until { (Openings) -eq 1 })
    Look 'From the second machine open a desktop again, and leave it open' 'a desktop, or its sign-in'

    Step 'Lockdown' 'every opening ends, sessions too'
    Check 'said so' ((Jitgate lockdown) -match 'every opening is closed')
    Check 'nothing is open' (Until { (Openings) -eq 0 })
    Look "The desktop on the second machine; then $try" 'it has ended; TcpTestSucceeded : False'

    Step 'Upgrades in one step' 'exit code 0, the newer program, and settings, documents, record, mode and guard as they were; an older one is refused'
    Look 'On the second machine, to be left running: while ($true) { Test-NetConnection THIS -Port 3389 -InformationLevel Quiet; sleep 1 }' 'False, again and again'
    Add-Content "$data\agent.toml" '# mine'
    $settings = Get-Content "$data\agent.toml" -Raw
    $install = (Ask status --json).install
    $version = (Ask version --json).version
    $result = Install "/i `"$Newer`" /qn"
    Check "msiexec ends with 0, here $result" ($result -eq 0)
    Check 'the agent answers' (Until { Answers })
    $newVersion = (Ask version --json).version
    Check "the program is another, $version before, $newVersion now" ($version -ne $newVersion)
    Check 'settings are as they were' ((Get-Content "$data\agent.toml" -Raw) -eq $settings)
    $s = Ask status --json
    Check 'it is the same installation, in mode enforce' (($s.install -eq $install) -and ($s.mode -eq 'enforce'))
    Check 'the policy is in force' (Until { InForce policy })
    Jitgate audit verify | Out-Null
    Check 'the record is whole' ($code -eq 0)
    Check 'recovery actions are there' ((Run 'sc.exe' @('qfailure', 'jitgate')) -match '1000')
    $result = Install "/i `"$Msi`" /qn"
    Check "the older one is refused, here with $result" (($result -ne 0) -and ((Ask version --json).version -eq $newVersion))
    Look 'The loop on the second machine, which goes on' 'never True'

    Remove-Item -Recurse -Force $work
    Write-Host ''
    Write-Host "So far $failed checks failed. Restart this machine now (Restart-Computer), with the loop on the"
    Write-Host 'second machine going on, and then run this again with -AfterRestart.'
    exit $failed
}

Step 'After a restart' 'the agent runs by itself, in mode enforce, and the loop never said True: closed while the machine started'
Check 'the agent answers' (Until { Answers })
$s = Ask status --json
Check "mode enforce, here $($s.mode); nothing is open" (($s.mode -eq 'enforce') -and (@($s.openings).Count -eq 0))
Look 'The loop on the second machine' 'never True'

Step 'Repairs' 'exit code 0, what was missing is back, settings as they were'
$settings = Get-Content "$data\agent.toml" -Raw
$notice = Join-Path (Split-Path $exe) 'LICENSE.txt'
Remove-Item $notice
$result = Install "/fa `"$Newer`" /qn"
Check "msiexec ends with 0, here $result" ($result -eq 0)
Check 'what was missing is back' (Test-Path $notice)
Check 'settings are as they were' ((Get-Content "$data\agent.toml" -Raw) -eq $settings)
Check 'the agent answers' (Until { Answers })

Step 'Removes everything' 'exit code 0, 3389 as before the installation, and no file, service, key, filter or rule'
$result = Install "/x `"$Newer`" /qn"
Check "msiexec ends with 0, here $result" ($result -eq 0)
Check 'no directory' (-not (Test-Path $data) -and -not (Test-Path (Split-Path $exe)))
Check 'no service' (@(Get-Service -Name @('jitgate', 'jitgate-fetch') -ErrorAction SilentlyContinue).Count -eq 0)
Check 'no key' (-not (Test-Path 'HKLM:\SOFTWARE\jitgate') -and -not (Test-Path $eventSource))
Check 'not in the PATH' ([Environment]::GetEnvironmentVariable('Path', 'Machine') -notmatch 'jitgate')
$filters = FiltersOfJitgate
Check "no filter, here $filters" ($filters -eq 0)
Check 'no rule' ((RulesOfJitgate).Count -eq 0)
Look $try 'TcpTestSucceeded : True'

Write-Host ''
if ($failed -eq 0) {
    Write-Host 'All is as expected.'
} else {
    Write-Host "$failed checks failed."
}
exit $failed
