# microguest: a boot sector with a command loop on the serial port.
# Commands (no echo): p pong | c count in memory | rDDLLLLLLLL read a sector of BIOS drive DD | wDDLLLLLLLLVV fill it |
# dNN dirty NN MiB | sNN sum them | fNN dirty NN times 16 MiB | eXXXXXXXX say it back | b burn | o power off | load and its tests, below.
# Numbers are hexadecimal; Escape gives up a command whose rest was lost.
.code16
.globl _start
_start:
  cli; ljmp $0,$1f
1: xorw %ax,%ax; movw %ax,%ds; movw %ax,%es; movw %ax,%ss; movw $0x7c00,%sp; sti; cld
  movb %dl,bootdrv
  movw $dap,%si; movb $0x42,%ah; int $0x13; jc err
  jmp main
err: movb $'E',%al; call putc
2: hlt; jmp 2b
putc: pushw %dx; pushw %ax; movw $0x3fd,%dx
3: inb %dx,%al; testb $0x20,%al; jz 3b
  popw %ax; movw $0x3f8,%dx; outb %al,%dx; popw %dx; ret
bootdrv: .byte 0
.balign 4
dap: .byte 16,0; .word 8; .word 0x7e00,0; .quad 1
.org 510
.word 0xaa55
# ---- second stage at 0x7e00
main:
  # enable A20 (fast), unreal mode
  inb $0x92,%al; orb $2,%al; outb %al,$0x92
  call unreal
  # PIT ch0 ~ 250 Hz
  movb $0x34,%al; outb %al,$0x43; movb $(4772&255),%al; outb %al,$0x40; movb $(4772>>8),%al; outb %al,$0x40
  movw $hello,%si; call puts
  movb 0x475,%al; call hex8; call nl
loop:
  movw $0x3fd,%dx; inb %dx,%al; testb $1,%al; jnz 4f
  hlt; jmp loop
4: movw $0x3f8,%dx; inb %dx,%al
  cmpb $'p',%al; je c_ping
  cmpb $'c',%al; je c_cnt
  cmpb $'r',%al; je c_rd
  cmpb $'w',%al; je c_wr
  cmpb $'d',%al; je c_dirty
  cmpb $'f',%al; je c_fill
  cmpb $'s',%al; je c_sum
  cmpb $'o',%al; je c_off
  cmpb $'b',%al; je c_burn
  cmpb $'e',%al; je c_echo
  cmpb $'l',%al; je c_load
  cmpb $'g',%al; je l_next
  cmpb $'v',%al; je c_verify
  cmpb $'k',%al; je c_hash
  jmp loop
c_ping: movw $pong,%si; call puts; jmp loop
c_cnt: incl counter; movb $'c',%al; call putc; movl counter,%eax; call hex32; call nl; jmp loop
c_off: movw $0x604,%dx; movw $0x2000,%ax; outw %ax,%dx; jmp loop
c_burn: movl $0x10000000,%ecx
5: decl %ecx; jnz 5b
  movb $'b',%al; call putc; call nl; jmp loop
c_echo: call rd32
  movb $'e',%al; call putc; movl %ebx,%eax; call hex32; call nl; jmp loop
getarg: # DD LLLLLLLL -> drv, udap.lba
  call rdhex2; movb %al,udrv; call rd32; movl %ebx,ulba; ret
rd32: movw $4,%cx; xorl %ebx,%ebx
6: shll $8,%ebx; call rdhex2; movb %al,%bl; loop 6b
  ret
unreal: # %fs reaches all memory; the BIOS may take that back
  pushl %eax; pushw %bx; cli; lgdt gdtr; movl %cr0,%eax; orb $1,%al; movl %eax,%cr0; movw $8,%bx; movw %bx,%fs
  andb $0xfe,%al; movl %eax,%cr0; xorw %bx,%bx; movw %bx,%fs; sti; popw %bx; popl %eax; ret
c_rd: call getarg; movb $0x42,%ah; call disk; jc ioerr
  movb $'r',%al; call putc; movw $0x9000,%si; movw $8,%cx
7: lodsb; call hex8; loop 7b
  movb $' ',%al; call putc; movw $0x9000,%si; movw $256,%cx; xorw %bx,%bx
8: lodsw; addw %ax,%bx; loop 8b
  movb %bh,%al; call hex8; movb %bl,%al; call hex8; call nl; jmp loop
c_wr: call getarg; call rdhex2; movw $0x9000,%di; movw $512,%cx; rep stosb
  movb $0x43,%ah; call disk; jc ioerr; movb $'w',%al; call putc; call nl; jmp loop
disk: movb udrv,%dl; movw $udap,%si; movw $1,2(%si); movb $0,%al; int $0x13; ret
ioerr: pushw %ax; movb $'!',%al; call putc; popw %ax; movb %ah,%al; call hex8; call nl; jmp loop
mib: call rdhex2; movzbl %al,%ecx; shll $18,%ecx; movl $0x100000,%edi; ret
c_fill: call mib; shll $4,%ecx; jmp 16f
c_dirty: call mib
16: movl counter,%eax
9: movl %eax,%fs:(%edi); addl $4,%edi; imull $1664525,%eax,%eax; addl $1013904223,%eax; decl %ecx; jnz 9b
  movb $'d',%al; call putc; call nl; jmp loop
c_sum: call mib; xorl %eax,%eax
10: addl %fs:(%edi),%eax; addl $4,%edi; decl %ecx; jnz 10b
  pushl %eax; movb $'s',%al; call putc; popl %eax; call hex32; call nl; jmp loop
rdc: movw $0x3fd,%dx
11: inb %dx,%al; testb $1,%al; jz 11b
  movw $0x3f8,%dx; inb %dx,%al; cmpb $27,%al; je giveup; ret
giveup: movw $0x7c00,%sp; jmp loop
rdhex2: pushw %bx; call nib; shlb $4,%al; movb %al,%bl; call nib; orb %bl,%al; popw %bx; ret
nib: call rdc; subb $'0',%al; cmpb $9,%al; jbe 12f; andb $0x1f,%al; subb $7,%al; 
  cmpb $10,%al; jae 12f; addb $0,%al
12: ret
puts: lodsb; testb %al,%al; jz 13f; call putc; jmp puts
13: ret
nl: movb $'\n',%al; call putc; ret
hex32: pushl %eax; shrl $24,%eax; call hex8; popl %eax; pushl %eax; shrl $16,%eax; call hex8; popl %eax; pushl %eax; shrl $8,%eax; call hex8; popl %eax
hex8: pushw %ax; shrb $4,%al; call hn; popw %ax
hn: pushw %ax; andb $15,%al; addb $'0',%al; cmpb $'9',%al; jbe 14f; addb $39,%al
14: call putc; popw %ax; ret
# ---- A load that verifies itself. Slots of 8 sectors from LBA LLLLLLLL of drive DD on; SS sectors of one are written at a time, each
# with its number, the slot's turn and what follows from both. A table at 2 MiB has the turn of every slot.
# lDDLLLLLLLLMMMMMMMMSSFFXXXXXXXX begin: slots 0-M (a mask), a flush after FF writes, X begins the random numbers | g go on after x
# While it runs: x stops it; a byte from 0x80 on is answered by q, that byte, turn, slowest write, slowest flush, slowest read, clock
# (units of 1024 ticks of the time stamp counter) and wrong sectors. Slowest begin anew then.
# v read all slots that were written: v, their number, wrong ones, and of the first its LBA, the turn expected and the turn found.
# kDDLLLLLLLLNNNNNNNN hash of N sectors.
c_load: call getarg; movb udrv,%al; movb %al,ldrv; movl %ebx,lbase
  call rd32; movl %ebx,lmask; call rdhex2; movb %al,lcnt; call rdhex2; movb %al,lper; call rd32; movl %ebx,lrng
  xorl %eax,%eax; movl %eax,lturn; movl %eax,lbad; movl %eax,lslowest; movl %eax,lslowflush; movl %eax,lslowread; movb %al,lsince
  call unreal; xorl %edi,%edi
40: movl $0,%fs:0x200000(,%edi,4); incl %edi; cmpl lmask,%edi; jbe 40b
  movb $'l',%al; call putc; call nl
l_next: incl lturn; call rand; movl %eax,lslot; call at_slot; movl lturn,%eax; movl %eax,bturn; call fill
  call clock; movl %eax,lsaid; movb lcnt,%cl; movb $0x43,%ah; call bdisk; jc lerr
  call clock; subl lsaid,%eax; cmpl lslowest,%eax; jbe 41f; movl %eax,lslowest
41: call unreal; movl lslot,%edi; movl lturn,%eax; movl %eax,%fs:0x200000(,%edi,4)
  incb lsince; movb lsince,%al; cmpb lper,%al; jb 43f
  movb $0,lsince; call clock; movl %eax,lsaid; call flush; jc lerr
  call clock; subl lsaid,%eax; cmpl lslowflush,%eax; jbe 43f; movl %eax,lslowflush
43: call rand; movl %eax,%edi; call clock; movl %eax,lread; call look
  call clock; subl lread,%eax; cmpl lslowread,%eax; jbe 59f; movl %eax,lslowread
59:  movw $0x3fd,%dx; inb %dx,%al; testb $1,%al; jz l_next
  movw $0x3f8,%dx; inb %dx,%al; cmpb $'x',%al; je 44f; cmpb $0x80,%al; jb l_next
  call tell; jmp l_next
44: call tell; jmp loop
tell: pushw %ax; movb $'q',%al; call putc; popw %ax; call hex8
  movl lturn,%eax; call sp32; movl lslowest,%eax; call sp32; movl lslowflush,%eax; call sp32; movl lslowread,%eax; call sp32
  call clock; call sp32; movl lbad,%eax; call sp32; call nl
  xorl %eax,%eax; movl %eax,lslowest; movl %eax,lslowflush; movl %eax,lslowread; ret
lerr: movw $0x7c00,%sp; jmp ioerr
sp32: pushl %eax; movb $' ',%al; call putc; popl %eax; jmp hex32
clock: rdtsc; shrdl $10,%edx,%eax; ret
rand: movl lrng,%eax; movl %eax,%edx; shll $13,%edx; xorl %edx,%eax; movl %eax,%edx; shrl $17,%edx; xorl %edx,%eax
  movl %eax,%edx; shll $5,%edx; xorl %edx,%eax; movl %eax,lrng; andl lmask,%eax; ret
at_slot: shll $3,%eax; addl lbase,%eax; movl %eax,blba; ret
mix: # what begins sector %ebx of turn bturn
  imull $0x85ebca6b,%ebx,%edx; imull $0x9e3779b1,bturn,%eax; xorl %edx,%eax; ret
fill: movw $0x1000,%ax; movw %ax,%es; xorw %di,%di; movb lcnt,%ch; movl blba,%ebx
45: movl bturn,%eax; stosl; movl %ebx,%eax; stosl; call mix; movb $126,%cl
46: imull $1664525,%eax,%eax; addl $1013904223,%eax; stosl; decb %cl; jnz 46b
  incl %ebx; decb %ch; jnz 45b
  xorw %ax,%ax; movw %ax,%es; ret
look: # reads slot %edi, if it was written, and compares
  call unreal; movl %fs:0x200000(,%edi,4),%eax; testl %eax,%eax; jz 51f
  movl %eax,bturn; movl %edi,%eax; call at_slot; incl lseen
  pushl %edi; movb lcnt,%cl; movb $0x42,%ah; call bdisk; popl %edi; jc lerr
  pushl %edi; movw $0x1000,%ax; movw %ax,%es; xorw %di,%di; movb lcnt,%ch; movl blba,%ebx
47: movl %es:(%di),%eax; movl %eax,lfound; scasl; movl bturn,%eax; cmpl %eax,lfound; jne 49f
  movl %ebx,%eax; scasl; jne 49f
  call mix; movb $126,%cl
48: imull $1664525,%eax,%eax; addl $1013904223,%eax; scasl; jne 49f; decb %cl; jnz 48b
  incl %ebx; decb %ch; jnz 47b
  jmp 50f
49: incl lbad; cmpl $1,lbad; jne 50f
  movl %ebx,badlba; movl bturn,%eax; movl %eax,badturn; movl lfound,%eax; movl %eax,badfound
50: xorw %ax,%ax; movw %ax,%es; popl %edi
51: ret
c_verify: xorl %eax,%eax; movl %eax,lbad; movl %eax,lseen; movl %eax,badlba; movl %eax,badturn; movl %eax,badfound; xorl %edi,%edi
52: call look; incl %edi; cmpl lmask,%edi; jbe 52b
  movb $'v',%al; call putc; movl lseen,%eax; call hex32; movl lbad,%eax; call sp32; movl badlba,%eax; call sp32
  movl badturn,%eax; call sp32; movl badfound,%eax; call sp32; call nl; jmp loop
c_hash: call getarg; movb udrv,%al; movb %al,ldrv; movl %ebx,blba; call rd32; movl %ebx,lsaid; movl $0,lfound
53: movl lsaid,%eax; testl %eax,%eax; jz 56f; cmpl $64,%eax; jbe 54f; movl $64,%eax
54: movb %al,%cl; movb $0x42,%ah; call bdisk; jc lerr
  movzwl bcnt,%eax; addl %eax,blba; subl %eax,lsaid; shlw $7,%ax; movw %ax,%cx
  movw $0x1000,%ax; movw %ax,%es; xorw %si,%si; movl lfound,%eax
55: imull $31,%eax,%eax; addl %es:(%si),%eax; addw $4,%si; loop 55b
  movl %eax,lfound; xorw %ax,%ax; movw %ax,%es; jmp 53b
56: movb $'k',%al; call putc; movl lfound,%eax; call hex32; call nl; jmp loop
bdisk: movb ldrv,%dl; movb $0,%ch; movw %cx,bcnt; movw $bdap,%si; movb $0,%al; int $0x13; ret
flush: # FLUSH CACHE of the first IDE controller's drive: the BIOS has no call for it
  movb ldrv,%al; shlb $4,%al; andb $0x10,%al; orb $0xe0,%al; movw $0x1f6,%dx; outb %al,%dx
  incw %dx; movb $0xe7,%al; outb %al,%dx
57: inb %dx,%al; testb $0x80,%al; jnz 57b
  testb $0x21,%al; jz 58f
  movb $0xe7,%ah; stc
58: ret
ldrv: .byte 0
lcnt: .byte 0
lper: .byte 0
lsince: .byte 0
.balign 4
lbase: .long 0
lmask: .long 0
lrng: .long 0
lturn: .long 0
lslot: .long 0
lsaid: .long 0
lslowest: .long 0
lslowflush: .long 0
lslowread: .long 0
lread: .long 0
lbad: .long 0
lseen: .long 0
lfound: .long 0
bturn: .long 0
badlba: .long 0
badturn: .long 0
badfound: .long 0
bdap: .byte 16,0
bcnt: .word 0; .word 0,0x1000
blba: .long 0,0
hello: .asciz "MG READY disks="
pong: .asciz "pong\n"
counter: .long 0
udrv: .byte 0
.balign 4
udap: .byte 16,0; .word 1; .word 0x9000,0
ulba: .long 0,0
.balign 8
gdt: .quad 0; .quad 0x00cf92000000ffff
gdtr: .word 15; .long gdt
.org 512*9
