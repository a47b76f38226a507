# Shows on a real Windows machine what could not be shown without one. About ten
# minutes, for an administrator, on a machine that may be cut off: a test VM with
# a console, and not one that is reached by RDP alone.
#
#   powershell -ExecutionPolicy Bypass -File acceptance.ps1 -Msi C:\jitgate-1.2.3-amd64.msi -Trust C:\trust.json -Pin sha256:... -Policy C:\policy.json -Grants C:\grants.json
#
# The documents are of a realm of your own, made anywhere (docs/formats.md):
#   jitgate trust init --realm test --out keys
#   jitgate sign --type policy ...     a policy for host win-test and port 3389, with sessionsAtEnd cut
#   jitgate grant --dir keys --host win-test --port 3389 --source YOUR-ADDRESS --for 5m -o grants.json
# Each step prints what it did and what is expected. Where it can tell, it says
# PASS or FAIL; where it says LOOK, look from a second machine, whose address the
# grant names.
param(
    [Parameter(Mandatory = $true)][string]$Msi,
    [Parameter(Mandatory = $true)][string]$Trust,
    [Parameter(Mandatory = $true)][string]$Pin,
    [Parameter(Mandatory = $true)][string]$Policy,
    [Parameter(Mandatory = $true)][string]$Grants
)

$ErrorActionPreference = 'Stop'
$data = Join-Path $env:ProgramData 'jitgate'
$exe = Join-Path $env:ProgramFiles 'jitgate\jitgate.exe'
$failed = 0
$step = 0

function Step($what) {
    $script:step++
    Write-Host ''
    Write-Host ("{0}. {1}" -f $script:step, $what)
}

function Check($what, $ok) {
    if ($ok) {
        Write-Host ("   PASS  {0}" -f $what)
    } else {
        Write-Host ("   FAIL  {0}" -f $what)
        $script:failed++
    }
}

function Look($what) {
    Write-Host ("   LOOK  {0}" -f $what)
    Read-Host '         Enter to go on' | Out-Null
}

# Runs the installer, and waits for it.
function Msiexec($words) {
    $p = Start-Process -FilePath msiexec.exe -ArgumentList $words -Wait -PassThru
    return $p.ExitCode
}

# Waits up to a minute for something to be so.
function Until($done) {
    for ($i = 0; $i -lt 60; $i++) {
        if (& $done) { return $true }
        Start-Sleep -Seconds 1
    }
    return $false
}

function Status() {
    $text = & $exe status --json 2>$null
    if ($LASTEXITCODE -ne 0) { return $null }
    return ($text | Out-String | ConvertFrom-Json)
}

function Version($document) {
    $s = Status
    if ($null -eq $s) { return 0 }
    foreach ($d in $s.documents) {
        if ($d.document -eq $document) { return $d.version }
    }
    return 0
}

Step 'Installs silently. Expected: exit code 0, both services there, the agent running.'
$code = Msiexec "/i `"$Msi`" /qn HOSTID=win-test REALM=test"
Check "msiexec ends with 0, here $code" ($code -eq 0)
Check 'the agent answers' (Until { $null -ne (Status) })
Check 'service jitgate runs' ((Get-Service jitgate).Status -eq 'Running')
Check 'service jitgate-fetch is there' ($null -ne (Get-Service jitgate-fetch -ErrorAction SilentlyContinue))

Step 'Services. Expected: RESTART after 1000 milliseconds, SID type UNRESTRICTED, BFE among the dependencies, the path in quotes.'
$failure = (& sc.exe qfailure jitgate) | Out-String
Check 'jitgate restarts after a failure' ($failure -match '1000')
$kind = (& sc.exe qsidtype jitgate-fetch) | Out-String
Check 'the fetcher has a name of its own' ($kind -match 'UNRESTRICTED')
$config = (& sc.exe qc jitgate) | Out-String
Check 'jitgate depends on BFE' ($config -match 'BFE')
Check 'the path is in quotes' ($config -match '"[^"]*jitgate\.exe" agent run')

Step 'Access lists. Expected: nobody but SYSTEM, Administrators and NT SERVICE\jitgate-fetch is named.'
foreach ($dir in @($data, "$data\inbox", "$data\state", "$data\fetch")) {
    $names = (Get-Acl $dir).Access | ForEach-Object { $_.IdentityReference.Value }
    $others = $names | Where-Object { $_ -notmatch 'SYSTEM|Administrat|jitgate-fetch|S-1-5-32-544|S-1-5-18' }
    Check "$dir names $($names -join ', ')" (@($others).Count -eq 0)
}

Step 'Kills the agent. Expected: it is back within seconds, by itself.'
$before = (Get-CimInstance Win32_Service -Filter "Name='jitgate'").ProcessId
Stop-Process -Id $before -Force
Check 'another process answers' (Until {
        $now = (Get-CimInstance Win32_Service -Filter "Name='jitgate'").ProcessId
        ($now -ne 0) -and ($now -ne $before) -and ($null -ne (Status))
    })

Step 'Documents. Expected: trust and policy in force; a file that everybody may write is refused.'
& $exe trust install --pin $Pin $Trust
Restart-Service jitgate
Check 'trust is in force' (Until { (Version 'trust') -ge 1 })
& $exe inbox put $Policy
Check 'the policy is in force' (Until { (Version 'policy') -ge 1 })
& icacls.exe "$data\inbox\policy.json" /grant '*S-1-1-0:M' | Out-Null
Check 'it is refused once everybody may write it' (Until {
        $s = Status
        ($null -ne $s) -and (($s.documents | Where-Object { $_.document -eq 'policy' }).refusal -match 'S-1-1-0')
    })
& icacls.exe "$data\inbox\policy.json" /remove '*S-1-1-0' | Out-Null

Step 'The Event Log. Expected: events of jitgate with a sentence and a line of JSON, no missing description.'
$events = Get-WinEvent -FilterHashtable @{ LogName = 'Application'; ProviderName = 'jitgate' } -MaxEvents 20
Check "there are events, here $(@($events).Count)" (@($events).Count -gt 0)
$admitted = $events | Where-Object { $_.Id -eq 1013 } | Select-Object -First 1
Check 'a document was admitted: 1013' ($null -ne $admitted)
if ($null -ne $admitted) {
    Write-Host $admitted.Message
    Check 'it has its text' (($admitted.Message -match 'in force') -and ($admitted.Message -match 'document\.admitted'))
}

Step 'Who may ask. Expected: a user who is no administrator is turned away.'
Look 'In a prompt that is NOT elevated run: jitgate status    Expected: an error that says permission or access denied'

Step 'Arms for three minutes. Expected: 3389 is closed from the second machine, to everybody but whom this session came from.'
& $exe arm --confirm-within 3m
Check 'mode enforce, on trial' ((Status).mode -eq 'enforce')
Look 'From the second machine: Test-NetConnection THIS -Port 3389    Expected: TcpTestSucceeded False'

Step 'A grant. Expected: 3389 is open to the second machine, and to nobody else.'
& $exe arm confirm
& $exe inbox put $Grants
Check 'an opening is there' (Until { @((Status).openings).Count -ge 1 })
Look 'From the second machine: Test-NetConnection THIS -Port 3389    Expected: TcpTestSucceeded True. Open a desktop and leave it open'

Step 'Stops the agent. Expected: the desktop of the second machine ends or goes on as the page of the Windows backend says, and nobody new gets in.'
Stop-Service jitgate
Look 'From the second machine: Test-NetConnection THIS -Port 3389    Expected: TcpTestSucceeded False'
Start-Service jitgate
Check 'the agent is back' (Until { $null -ne (Status) })

Step 'Lockdown. Expected: every opening ends, sessions too.'
& $exe lockdown
Check 'nothing is open' (Until { @((Status).openings).Count -eq 0 })
Look 'The desktop on the second machine has ended'

Step 'Restart. Expected: 3389 is closed while the machine starts, before the agent does.'
Look 'Restart this machine now if you can, with Test-NetConnection in a loop on the second one: never True. Then run the rest by hand: repair (msiexec /fa), removal (msiexec /x). Enter goes on without a restart'

Step 'Repairs, and installs over itself. Expected: exit code 0, settings as they were.'
$settings = Get-Content "$data\agent.toml" -Raw
$code = Msiexec "/fa `"$Msi`" /qn"
Check "repair ends with 0, here $code" ($code -eq 0)
Check 'settings are as they were' ((Get-Content "$data\agent.toml" -Raw) -eq $settings)

Step 'Removes everything. Expected: exit code 0, 3389 as before the installation, no file, service or key.'
$code = Msiexec "/x `"$Msi`" /qn"
Check "msiexec ends with 0, here $code" ($code -eq 0)
Check 'no directory' (-not (Test-Path $data) -and -not (Test-Path (Split-Path $exe)))
Check 'no service' (($null -eq (Get-Service jitgate -ErrorAction SilentlyContinue)) -and ($null -eq (Get-Service jitgate-fetch -ErrorAction SilentlyContinue)))
Check 'no key' (-not (Test-Path 'HKLM:\SOFTWARE\jitgate'))
$filters = Join-Path $env:TEMP 'jitgate-filters.xml'
& netsh.exe wfp show filters "file=$filters" | Out-Null
Check 'no filter' (-not (Select-String -Path $filters -Pattern 'jitgate' -Quiet))
Remove-Item $filters -ErrorAction SilentlyContinue

Write-Host ''
if ($failed -eq 0) {
    Write-Host 'All that could be checked is as expected.'
    exit 0
}
Write-Host "$failed checks failed."
exit 1
