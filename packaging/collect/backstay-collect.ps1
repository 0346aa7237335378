<#
.SYNOPSIS
Writes what this Hyper-V host knows about its virtual machines into one JSON file.

.DESCRIPTION
For machines that move to Backstay: `backstay vm import` reads the file together with the machines' disks. It holds names,
identities, settings, disks, network cards and checkpoints; no content of any disk, no passwords, no keys.
Nothing on this host is changed.

Runs in Windows PowerShell 2.0 to 5.1 on Windows Server 2008 (with PowerShell 2.0) to 2025, with or without the Hyper-V
cmdlets: everything is asked of WMI, in the namespace root\virtualization of Windows Server 2008 and 2008 R2, or
root\virtualization\v2 of Windows Server 2012 and later. The form is described in docs/formats/collector.md.

.PARAMETER Path
The file to be written, by default backstay-collect.json in this folder. Put it beside the machines' folders.

.PARAMETER Name
Only machines whose name is like this, for example 'web*'.

.EXAMPLE
powershell -ExecutionPolicy Bypass -File backstay-collect.ps1 -Path D:\export\backstay-collect.json
#>
param(
    [string]$Path = 'backstay-collect.json',
    [string]$Name = '*'
)

Set-StrictMode -Version 2.0
$ErrorActionPreference = 'Stop'

# --- JSON (ConvertTo-Json came with PowerShell 3) -------------------------------------------------------------------

function Format-Text([string]$Text) {
    $out = New-Object Text.StringBuilder
    foreach ($c in $Text.ToCharArray()) {
        $n = [int]$c
        if ($c -eq '"' -or $c -eq '\') { [void]$out.Append('\').Append($c) }
        elseif ($n -lt 32 -or $n -gt 126) { [void]$out.Append('\u').Append($n.ToString('x4')) }
        else { [void]$out.Append($c) }
    }
    '"' + $out.ToString() + '"'
}

function Format-Json($Value, [string]$Indent = '') {
    $in = $Indent + '  '
    if ($null -eq $Value) { return 'null' }
    if ($Value -is [bool]) { return $Value.ToString().ToLower() }
    if ($Value -is [string] -or $Value -is [char]) { return Format-Text $Value }
    if ($Value -is [Collections.IDictionary]) {
        $members = @($Value.Keys | Sort-Object | ForEach-Object {
            $in + (Format-Text $_) + ': ' + (Format-Json $Value[$_] $in)
        })
        if ($members.Count -eq 0) { return '{}' }
        return "{`r`n" + ($members -join ",`r`n") + "`r`n$Indent}"
    }
    if ($Value -is [Collections.IEnumerable]) {
        $items = @($Value | ForEach-Object { $in + (Format-Json $_ $in) })
        if ($items.Count -eq 0) { return '[]' }
        return "[`r`n" + ($items -join ",`r`n") + "`r`n$Indent]"
    }
    ([IFormattable]$Value).ToString($null, [Globalization.CultureInfo]::InvariantCulture)
}

# --- WMI ------------------------------------------------------------------------------------------------------------

$namespace = 'root\virtualization\v2'
try { [void](Get-WmiObject -Namespace $namespace -Class Msvm_VirtualSystemManagementService) }
catch { $namespace = 'root\virtualization' }
$isV2 = $namespace.EndsWith('v2')

# All instances of a class; none where this version does not have it.
function Get-Instances([string]$Class) {
    try { @(Get-WmiObject -Namespace $namespace -Class $Class) } catch { @() }
}

# A property; $null where this version does not have it.
function Get-Value($Object, [string]$Property) {
    if ($null -eq $Object) { return $null }
    $found = $Object.Properties | Where-Object { $_.Name -eq $Property }
    if ($null -eq $found) { return $null }
    $found.Value
}

function Get-First($Object, [string]$Property) {
    $value = Get-Value $Object $Property
    if ($null -eq $value) { return $null }
    @($value) | Where-Object { $_ } | Select-Object -First 1
}

# The parts of an identifier, 'Microsoft:<owner>\<device>\...', or of the one that an object path names.
function Get-Parts([string]$Text) {
    if ($Text -match 'InstanceID="([^"]*)"') { $Text = $Matches[1] }
    @($Text -replace '^Microsoft:', '' -split '\\+' | Where-Object { $_ })
}

function Get-Key([string]$ObjectPath, [string]$Key) {
    if ($ObjectPath -match ('[.,]' + $Key + '="([^"]*)"')) { return $Matches[1] }
    $null
}

function Format-Time($Text) {
    if (-not $Text) { return $null }
    try {
        $time = [Management.ManagementDateTimeConverter]::ToDateTime($Text).ToUniversalTime()
        $time.ToString('yyyy-MM-ddTHH:mm:ss', [Globalization.CultureInfo]::InvariantCulture) + 'Z'
    } catch { $null }
}

function Get-Word($Number, [hashtable]$Words) {
    if ($null -eq $Number) { return $null }
    $Words[[int]$Number]
}

# Every instance of these classes, by owner: a machine or a checkpoint.
$byOwner = @{}
foreach ($class in @('Msvm_ProcessorSettingData', 'Msvm_MemorySettingData', 'Msvm_ResourceAllocationSettingData',
        'Msvm_StorageAllocationSettingData', 'Msvm_SyntheticEthernetPortSettingData',
        'Msvm_EmulatedEthernetPortSettingData', 'Msvm_EthernetPortAllocationSettingData', 'Msvm_SerialPortSettingData',
        'Msvm_EthernetSwitchPortVlanSettingData', 'Msvm_EthernetSwitchPortSecuritySettingData',
        'Msvm_EthernetSwitchPortBandwidthSettingData', 'Msvm_HeartbeatComponentSettingData',
        'Msvm_KvpExchangeComponentSettingData', 'Msvm_ShutdownComponentSettingData',
        'Msvm_TimeSyncComponentSettingData', 'Msvm_VssComponentSettingData',
        'Msvm_GuestServiceInterfaceComponentSettingData', 'Msvm_SecuritySettingData', 'Msvm_PciExpressSettingData',
        'Msvm_GpuPartitionSettingData', 'Msvm_SyntheticFcPortSettingData')) {
    foreach ($instance in (Get-Instances $class)) {
        $owner = (Get-Parts $instance.InstanceID | Select-Object -First 1)
        if (-not $owner) { continue }
        $key = $owner.ToUpper() + '|' + $class
        if (-not $byOwner.ContainsKey($key)) { $byOwner[$key] = New-Object Collections.ArrayList }
        [void]$byOwner[$key].Add($instance)
    }
}

function Get-Owned([string]$Owner, [string]$Class) {
    $key = $Owner.ToUpper() + '|' + $Class
    if ($byOwner.ContainsKey($key)) { @($byOwner[$key]) } else { @() }
}

$switchNames = @{}
foreach ($class in @('Msvm_VirtualEthernetSwitch', 'Msvm_VirtualSwitch')) {
    foreach ($one in (Get-Instances $class)) { $switchNames[$one.Name.ToUpper()] = $one.ElementName }
}

# --- One state of a machine: now, or a checkpoint -------------------------------------------------------------------

function Get-Processors([string]$Owner) {
    $found = Get-Owned $Owner 'Msvm_ProcessorSettingData' | Select-Object -First 1
    @{
        count = Get-Value $found 'VirtualQuantity'; reserve = Get-Value $found 'Reservation'
        limit = Get-Value $found 'Limit'; weight = Get-Value $found 'Weight'
        forMigration = Get-Value $found 'LimitProcessorFeatures'; forOldSystems = Get-Value $found 'LimitCPUID'
        nested = Get-Value $found 'ExposeVirtualizationExtensions'
    }
}

function Get-Memory([string]$Owner) {
    $found = Get-Owned $Owner 'Msvm_MemorySettingData' | Select-Object -First 1
    @{
        startupMib = Get-Value $found 'VirtualQuantity'; dynamic = Get-Value $found 'DynamicMemoryEnabled'
        minMib = Get-Value $found 'Reservation'; maxMib = Get-Value $found 'Limit'
        bufferPercent = Get-Value $found 'TargetMemoryBuffer'; weight = Get-Value $found 'Weight'
    }
}

function Get-Firmware($System, [string]$Owner) {
    $words = @{ 0 = 'floppy'; 1 = 'optical'; 2 = 'hard-drive'; 3 = 'network' }
    $order = @(Get-Value $System 'BootOrder' | Where-Object { $null -ne $_ } | ForEach-Object { Get-Word $_ $words })
    $security = Get-Owned $Owner 'Msvm_SecuritySettingData' | Select-Object -First 1
    @{
        biosGuid = Get-Value $System 'BIOSGUID'; biosSerial = Get-Value $System 'BIOSSerialNumber'
        baseBoardSerial = Get-Value $System 'BaseBoardSerialNumber'
        chassisSerial = Get-Value $System 'ChassisSerialNumber'; chassisAssetTag = Get-Value $System 'ChassisAssetTag'
        numLock = Get-Value $System 'BIOSNumLock'; bootOrder = $order
        secureBoot = Get-Value $System 'SecureBootEnabled'
        secureBootTemplate = Get-Value $System 'SecureBootTemplateId'; tpm = Get-Value $security 'TpmEnabled'
    }
}

# Allocations by what they allocate: the last words of the sub-type are the same in both namespaces.
function Get-Allocations([string]$Owner) {
    @(Get-Owned $Owner 'Msvm_ResourceAllocationSettingData') + @(Get-Owned $Owner 'Msvm_StorageAllocationSettingData')
}

function Get-SubType($Allocation) {
    "$(Get-Value $Allocation 'ResourceSubType')" -replace '^Microsoft:Hyper-V:', '' -replace '^Microsoft ', ''
}

# The identifier as one text that compares, and that of the parent.
function Get-Id($Object) { ((Get-Parts $Object.InstanceID) -join '\').ToUpper() }
function Get-ParentId($Object) { ((Get-Parts (Get-Value $Object 'Parent')) -join '\').ToUpper() }

function Get-Address($Object) {
    $address = Get-Value $Object 'AddressOnParent'
    if (-not $address) { $address = Get-Value $Object 'Address' }
    if ($address) { [int]$address } else { 0 }
}

function Get-Storage([string]$Owner) {
    $all = @(Get-Allocations $Owner)
    $controllers = @{}
    $listed = @()
    $scsi = 0
    foreach ($one in $all) {
        $sub = Get-SubType $one
        if ($sub -eq 'Emulated IDE Controller') { $controllers[(Get-Id $one)] = @{ bus = 'ide'; number = (Get-Address $one) } }
        if ($sub -eq 'Synthetic SCSI Controller') {
            $controllers[(Get-Id $one)] = @{ bus = 'scsi'; number = $scsi }
            $listed += @{ bus = 'scsi'; number = $scsi; id = @(Get-Parts $one.InstanceID)[1] }
            $scsi++
        }
        if ($sub -eq 'Diskette Controller' -or [int](Get-Value $one 'ResourceType') -eq 1) {
            $controllers[(Get-Id $one)] = @{ bus = 'floppy'; number = 0 }
        }
    }
    $kinds = @{
        'Synthetic Disk Drive' = 'disk'; 'Physical Disk Drive' = 'pass-through'
        'Synthetic DVD Drive' = 'optical'; 'Synthetic CD Drive' = 'optical'
        'Physical DVD Drive' = 'host-optical'; 'Physical CD Drive' = 'host-optical'; 'Synthetic Diskette Drive' = 'floppy'
    }
    $drives = @{}
    foreach ($one in $all) {
        $kind = $kinds[(Get-SubType $one)]
        if (-not $kind) { continue }
        $place = $controllers[(Get-ParentId $one)]
        if (-not $place) { $place = @{ bus = $(if ($kind -eq 'floppy') { 'floppy' } else { $null }); number = 0 } }
        $drives[(Get-Id $one)] = @{
            bus = $place.bus; controller = $place.number; location = (Get-Address $one); kind = $kind
            path = $(if ($kind -eq 'pass-through') { Get-First $one 'HostResource' } else { $null })
            maxIops = $null; minIops = $null
        }
    }
    foreach ($one in $all) {
        $sub = Get-SubType $one
        if (@('Virtual Hard Disk', 'Virtual CD/DVD Disk', 'ISO Image', 'Physical CD/DVD Disk', 'Virtual Floppy Disk') -notcontains $sub) { continue }
        $drive = $drives[(Get-ParentId $one)]
        if (-not $drive) { continue }
        # Before Windows Server 2012 the path was the connection.
        $file = Get-First $one 'HostResource'
        if (-not $file) { $file = Get-First $one 'Connection' }
        $drive.path = $file
        if ($sub -eq 'Physical CD/DVD Disk') { $drive.kind = 'host-optical' }
        $drive.maxIops = Get-Value $one 'IOPSLimit'
        $drive.minIops = Get-Value $one 'IOPSReservation'
    }
    @{ controllers = $listed; drives = @($drives.Values) }
}

# What hangs on a connection: VLAN, security, bandwidth. Its identifier begins with that of the connection.
function Get-Feature([string]$Owner, [string]$Class, [string]$Prefix) {
    Get-Owned $Owner $Class | Where-Object { (Get-Id $_).StartsWith($Prefix) } | Select-Object -First 1
}

function Get-Vlan([string]$Owner, [string]$Prefix) {
    $found = Get-Feature $Owner 'Msvm_EthernetSwitchPortVlanSettingData' $Prefix
    if ($null -eq $found) { return $null }
    switch ([int](Get-Value $found 'OperationMode')) {
        1 { @{ mode = 'access'; id = Get-Value $found 'AccessVlanId' } }
        2 { @{ mode = 'trunk'; native = Get-Value $found 'NativeVlanId'; allowed = (@(Get-Value $found 'TrunkVlanIdArray') -join ',') } }
        3 {
            $mode = Get-Word (Get-Value $found 'PvlanMode') @{ 1 = 'isolated'; 2 = 'community'; 3 = 'promiscuous' }
            $second = @(Get-Value $found 'SecondaryVlanIdArray' | Where-Object { $_ }) -join ','
            if (-not $second) { $second = "$(Get-Value $found 'SecondaryVlanId')" }
            @{ mode = $mode; primary = Get-Value $found 'PrimaryVlanId'; secondary = $second }
        }
        default { $null }
    }
}

# Windows Server 2008: the VLAN belongs to the switch's port.
function Get-OldVlan([string]$PortPath) {
    try {
        foreach ($endpoint in ([wmi]$PortPath).GetRelated('Msvm_VLANEndpoint')) {
            foreach ($settings in $endpoint.GetRelated('Msvm_VLANEndpointSettingData')) {
                $id = Get-Value $settings 'AccessVLAN'
                if ($id) { return @{ mode = 'access'; id = $id } }
            }
        }
    } catch { }
    $null
}

function Get-Nics([string]$Owner) {
    $nics = @()
    foreach ($kind in @('synthetic', 'legacy')) {
        $class = $(if ($kind -eq 'synthetic') { 'Msvm_SyntheticEthernetPortSettingData' } else { 'Msvm_EmulatedEthernetPortSettingData' })
        foreach ($port in (Get-Owned $Owner $class)) {
            $id = Get-Id $port
            $connection = $null; $connected = $false; $vlan = $null; $security = $null; $bandwidth = $null
            if ($isV2) {
                $allocation = Get-Owned $Owner 'Msvm_EthernetPortAllocationSettingData' |
                    Where-Object { (Get-ParentId $_) -eq $id } | Select-Object -First 1
                if ($allocation) {
                    $connection = Get-First $allocation 'HostResource'
                    $connected = $connection -and ([int](Get-Value $allocation 'EnabledState') -eq 2)
                    $prefix = Get-Id $allocation
                    $vlan = Get-Vlan $Owner $prefix
                    $security = Get-Feature $Owner 'Msvm_EthernetSwitchPortSecuritySettingData' $prefix
                    $bandwidth = Get-Feature $Owner 'Msvm_EthernetSwitchPortBandwidthSettingData' $prefix
                }
                $switchId = $(if ($connection) { Get-Key $connection 'Name' })
            } else {
                $connection = Get-First $port 'Connection'
                $connected = [bool]$connection
                if ($connection) { $vlan = Get-OldVlan $connection }
                $switchId = $(if ($connection) { Get-Key $connection 'SystemName' })
            }
            $nics += @{
                id = @(Get-Parts $port.InstanceID)[1]; name = $port.ElementName; kind = $kind
                mac = Get-Value $port 'Address'; macIsStatic = Get-Value $port 'StaticMacAddress'
                connected = [bool]$connected; switchId = $switchId
                'switch' = $(if ($switchId) { $switchNames[$switchId.ToUpper()] })
                vlan = $vlan; macSpoofing = Get-Value $security 'AllowMacSpoofing'
                maxBps = Get-Value $bandwidth 'Limit'; minBps = Get-Value $bandwidth 'Reservation'
            }
        }
    }
    , $nics
}

function Get-ComPorts([string]$Owner) {
    $ports = @()
    $all = @(Get-Allocations $Owner | Where-Object { (Get-SubType $_) -eq 'Serial Port' }) + @(Get-Owned $Owner 'Msvm_SerialPortSettingData')
    foreach ($one in $all) {
        $pipe = Get-First $one 'Connection'
        if (-not $pipe) { continue }
        $number = $null
        if ("$($one.ElementName)" -match 'COM\s*(\d+)') { $number = [int]$Matches[1] }
        elseif ("$($one.InstanceID)" -match '\\(\d+)$') { $number = [int]$Matches[1] + 1 }
        $ports += @{ number = $number; path = $pipe }
    }
    , $ports
}

function Get-Integration([string]$Owner) {
    $words = @{
        'heartbeat' = 'Msvm_HeartbeatComponentSettingData'; 'key-value' = 'Msvm_KvpExchangeComponentSettingData'
        'shutdown' = 'Msvm_ShutdownComponentSettingData'; 'time-sync' = 'Msvm_TimeSyncComponentSettingData'
        'vss' = 'Msvm_VssComponentSettingData'; 'guest-services' = 'Msvm_GuestServiceInterfaceComponentSettingData'
    }
    $services = @()
    foreach ($word in ($words.Keys | Sort-Object)) {
        $found = Get-Owned $Owner $words[$word] | Select-Object -First 1
        if ($found) { $services += @{ service = $word; enabled = ([int](Get-Value $found 'EnabledState') -ne 3) } }
    }
    , $services
}

function Get-OtherDevices([string]$Owner) {
    $devices = @()
    foreach ($class in @('Msvm_PciExpressSettingData', 'Msvm_GpuPartitionSettingData', 'Msvm_SyntheticFcPortSettingData')) {
        foreach ($one in (Get-Owned $Owner $class)) {
            $devices += @{ name = $one.ElementName; class = $class; hostResource = Get-First $one 'HostResource' }
        }
    }
    , $devices
}

function Get-Settings($System) {
    $owner = Get-Parts $System.InstanceID | Select-Object -First 1
    $storage = Get-Storage $owner
    @{
        processors = Get-Processors $owner; memory = Get-Memory $owner; firmware = Get-Firmware $System $owner
        controllers = $storage.controllers; drives = $storage.drives; nics = Get-Nics $owner
        comPorts = Get-ComPorts $owner; integration = Get-Integration $owner; otherDevices = Get-OtherDevices $owner
    }
}

# --- Machines -------------------------------------------------------------------------------------------------------

function Get-ParentGuid($System) {
    $parent = Get-Value $System 'Parent'
    if (-not $parent) { return $null }
    Get-Parts $parent | Select-Object -First 1
}

# Saved memory lies in a folder named after the machine or checkpoint, or beside its configuration.
function Get-SavedFiles([string]$Root, [string]$Folder, [string]$Guid) {
    if (-not $Root) { return , @() }
    $places = @((Join-Path (Join-Path $Root $Folder) $Guid), (Join-Path $Root $Folder))
    $found = @()
    foreach ($place in $places) {
        foreach ($kind in @('.vsv', '.bin', '.vmrs')) {
            $file = Join-Path $place ($Guid + $kind)
            # A .vmrs of some 50 KiB exists for every machine and holds no memory.
            if ((Test-Path -LiteralPath $file) -and ($kind -ne '.vmrs' -or (Get-Item -LiteralPath $file).Length -gt 1048576)) { $found += $file }
        }
    }
    , $found
}

function Get-Checkpoint($System) {
    $id = Get-Parts $System.InstanceID | Select-Object -First 1
    $kind = $null
    $type = "$(Get-Value $System 'VirtualSystemType')"
    if ($type -match 'Recovery') { $kind = 'recovery' }
    elseif ($type -match 'Replica') { $kind = 'replica' }
    elseif ($isV2) {
        $level = Get-Value $System 'ConsistencyLevel'
        $kind = $(if ($null -ne $level -and [int]$level -eq 1) { 'production' } else { 'standard' })
    }
    @{
        id = $id; name = $System.ElementName; notes = (@(Get-Value $System 'Notes') -join "`n")
        parent = Get-ParentGuid $System; created = Format-Time (Get-Value $System 'CreationTime'); kind = $kind
        savedStateFiles = Get-SavedFiles (Get-Value $System 'SnapshotDataRoot') 'Snapshots' $id
        settings = Get-Settings $System
    }
}

function Get-Actions($Holder) {
    # The numbers are counted from 0 in the older namespace and from 2 in the newer one.
    $first = $(if ($isV2) { 2 } else { 0 })
    $word = { param($value, $words) if ($null -eq $value) { $null } else { $words[[int]$value - $first] } }
    $delay = Get-Value $Holder 'AutomaticStartupActionDelay'
    $seconds = 0
    if ($delay) { try { $seconds = [int][Management.ManagementDateTimeConverter]::ToTimeSpan($delay).TotalSeconds } catch { } }
    @{
        start = & $word (Get-Value $Holder 'AutomaticStartupAction') @('nothing', 'start-if-running', 'start')
        startDelaySeconds = $seconds
        stop = & $word (Get-Value $Holder 'AutomaticShutdownAction') @('turn-off', 'save', 'shutdown')
        recovery = & $word (Get-Value $Holder 'AutomaticRecoveryAction') @('none', 'restart', 'revert')
    }
}

$systems = @(Get-Instances 'Msvm_VirtualSystemSettingData')
$globals = @(Get-Instances 'Msvm_VirtualSystemGlobalSettingData')

function Get-SystemOf($System) {
    $guid = Get-Value $System 'VirtualSystemIdentifier'
    if (-not $guid) { $guid = Get-Value $System 'SystemName' }
    "$guid"
}

function Get-Machine($Computer) {
    $guid = $Computer.Name
    $mine = @($systems | Where-Object { (Get-SystemOf $_) -eq $guid })
    $now = $mine | Where-Object { (Get-Parts $_.InstanceID | Select-Object -First 1) -eq $guid } | Select-Object -First 1
    if ($null -eq $now) { return $null }
    $checkpoints = @($mine | Where-Object { (Get-Parts $_.InstanceID | Select-Object -First 1) -ne $guid })
    # Before Windows Server 2012 what does not change with a checkpoint was kept apart.
    $global = $globals | Where-Object { $_.SystemName -eq $guid } | Select-Object -First 1
    $holder = $(if ($global) { $global } else { $now })
    $root = Get-Value $now 'ConfigurationDataRoot'
    if (-not $root) { $root = Get-Value $holder 'ExternalDataRoot' }
    $states = @{ 2 = 'running'; 3 = 'off'; 6 = 'saved'; 9 = 'paused'; 32768 = 'paused'; 32769 = 'saved' }
    $state = $states[[int]$Computer.EnabledState]
    $generation = 1
    if ("$(Get-Value $now 'VirtualSystemSubType')" -match 'SubType:2') { $generation = 2 }
    @{
        id = $guid; name = $Computer.ElementName; notes = (@(Get-Value $now 'Notes') -join "`n")
        created = Format-Time (Get-Value $now 'CreationTime'); version = Get-Value $holder 'Version'
        generation = $generation; state = $state; clustered = [bool](Get-Value $now 'IsClustered')
        scopeOfResidence = Get-Value $global 'ScopeOfResidence'; configurationRoot = $root
        snapshotRoot = Get-Value $holder 'SnapshotDataRoot'; actions = Get-Actions $holder
        parent = Get-ParentGuid $now
        savedStateFiles = $(if ($state -eq 'saved') { Get-SavedFiles $root 'Virtual Machines' $guid } else { , @() })
        settings = Get-Settings $now
        checkpoints = @($checkpoints | ForEach-Object { Get-Checkpoint $_ })
    }
}

# The host is a computer system too; machines are named by GUIDs.
$isGuid = '^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$'
$computers = @(Get-Instances 'Msvm_ComputerSystem' | Where-Object { $_.Name -match $isGuid -and $_.ElementName -like $Name })
$machines = @()
foreach ($computer in $computers) {
    Write-Host "reading $($computer.ElementName)"
    $machine = Get-Machine $computer
    if ($machine) { $machines += $machine } else { Write-Warning "$($computer.ElementName): its settings cannot be read, it is left out" }
}

$os = Get-WmiObject -Class Win32_OperatingSystem
$document = @{
    format = 'backstay-collect'; version = 1
    host = @{ name = $env:COMPUTERNAME; os = $os.Caption; version = $os.Version; namespace = $namespace }
    collected = (Get-Date).ToUniversalTime().ToString('yyyy-MM-ddTHH:mm:ss', [Globalization.CultureInfo]::InvariantCulture) + 'Z'
    machines = $machines
}
$target = $ExecutionContext.SessionState.Path.GetUnresolvedProviderPathFromPSPath($Path)
# Written beside and renamed, so that a half file never has the name.
$partial = "$target.partial"
[IO.File]::WriteAllText($partial, (Format-Json $document) + "`r`n", (New-Object Text.UTF8Encoding $false))
if (Test-Path -LiteralPath $target) { Remove-Item -LiteralPath $target }
[IO.File]::Move($partial, $target)
Write-Host "$($machines.Count) machines in $target"
