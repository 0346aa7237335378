# microguest: a boot sector with a command loop on the serial port.
# Commands (no echo): p pong | c count in memory | rDDLLLLLLLL read a sector of BIOS drive DD | wDDLLLLLLLLVV fill it |
# dNN dirty NN MiB | sNN sum them | fNN dirty NN times 16 MiB | eXXXXXXXX say it back | b burn | o power off. Numbers are hexadecimal;
# Escape gives up a command whose rest was lost.
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
  cli; lgdt gdtr; movl %cr0,%eax; orb $1,%al; movl %eax,%cr0; movw $8,%bx; movw %bx,%fs
  andb $0xfe,%al; movl %eax,%cr0; xorw %bx,%bx; movw %bx,%fs; sti
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
  jmp loop
c_ping: movw $pong,%si; call puts; jmp loop
c_cnt: incl counter; movb $'c',%al; call putc; movl counter,%eax; call hex32; call nl; jmp loop
c_off: movw $0x604,%dx; movw $0x2000,%ax; outw %ax,%dx; jmp loop
c_burn: movl $0x10000000,%ecx
5: decl %ecx; jnz 5b
  movb $'b',%al; call putc; call nl; jmp loop
c_echo: movw $4,%cx; xorl %ebx,%ebx
15: shll $8,%ebx; call rdhex2; movb %al,%bl; loop 15b
  movb $'e',%al; call putc; movl %ebx,%eax; call hex32; call nl; jmp loop
getarg: # DD LLLLLLLL -> drv, udap.lba
  call rdhex2; movb %al,udrv; movw $4,%cx; xorl %ebx,%ebx
6: shll $8,%ebx; call rdhex2; movb %al,%bl; loop 6b
  movl %ebx,ulba; ret
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
