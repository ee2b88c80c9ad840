"""Values as they are typed after ``key=``: right for some fields, hostile to most."""

_LINES = r"""
0
-1
1
2
-7
3
1e3
10.0
1_000
007
+5
-0
0x10
0o7
1e-3
0.5
-0.5
1e18
1e30
1e300
1e400
-1e300
2147483648
9223372036854775808
-9223372036854775809
1e-320
999999999999999999999999999999
.5
5.
nan
.nan
inf
-.inf
true
false
yes
no
on
maybe
TRUE
~
null
''
""
' '
[]
[1]
{}
{a: 1}
[[[[1]]]]
{a: {b: {c: 1}}}
${model.layers}
???
${oc.env:HOME}
!!bool maybe
!!int x
!!float ''
!!str 5
!!timestamp x
!!binary x
!!set {a}
!!python/name:os.system
!x y
&a [*a]
*a
&a 5
"\e[2J\e[1;1H"
"\a\b\0"
"\u202e"
"\ud800"
"\n\n"
"\U0010ffff"
1:2
1:2/3:4
1:1/2:2
2:1
1:2/1:2
0:1
1:9
1:2/
a:b
9999999999999999999999999999999999999999
auto
none
ultramem
pkm
ultramem_v2
fp32
bf16
full
lazy
split
number_wise
grid
~/data
~nobody/x
/
/dev/null
..
../../etc
data
{a: 1, a: 2}
{a: -1}
{a: nan}
{a: 1e300}
{2020: 1}
{~: 1}
{"\e[2J": 1}
{../x: 1}
[a, b]
: :
- -
{
]
"
'
|
>
%
@
`
#
&
*
!
?
a: b: c
1 # c
"""

VALUES = (
    *_LINES.strip("\n").split("\n"),
    *("\uff11\uff12", "\xb2", "\u0663", "\u216b", "\xbd", "\uff11:\uff12"),
    *("9" * 99, "9" * 101, "9" * 5000, "0." + "0" * 90 + "1", "a" * 300, "a/" * 3000, "x" * 20_000, "\xe9" * 3000),
    *("'\x7f'", "\x9b31m", "\x1b[2J", "\t1"),
)
