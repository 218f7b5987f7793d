# A worker that takes its listening sockets as systemd gives them, one client after the other, with what
# every Debian has. It says READY=1 and STATUS=, answers its process id, and on SIGTERM finishes and ends.
use strict;
use warnings;
use Errno;
use Socket;

sub notify {
    my ($text) = @_;
    my $name = $ENV{NOTIFY_SOCKET} or return;
    $name =~ s/^@/\0/;
    socket(my $out, PF_UNIX, SOCK_DGRAM, 0) or die "socket: $!";
    connect($out, pack_sockaddr_un($name)) or die "connect to $ENV{NOTIFY_SOCKET}: $!";
    send($out, $text, 0) or die "send: $!";
}

die "no sockets were passed\n" unless ($ENV{LISTEN_PID} // 0) == $$;
my @listeners = map { open(my $it, '+<&=', 3 + $_) or die "$_: $!"; $it } 0 .. $ENV{LISTEN_FDS} - 1;

my $stopping = 0;
# Also ends the wait, through a pipe: a signal just before select would be forgotten.
pipe(my $bell, my $rope) or die "pipe: $!";
$SIG{TERM} = sub { $stopping = 1; syswrite($rope, 'x') };
$SIG{PIPE} = 'IGNORE';

notify("READY=1\nSTATUS=serves as user $<");
while (!$stopping) {
    my $set = '';
    vec($set, fileno($_), 1) = 1 for @listeners, $bell;
    select($set, undef, undef, undef);
    for my $listener (@listeners) {
        # A sibling may have been faster.
        accept(my $client, $listener) or next;
        my $head = '';
        while (index($head, "\r\n\r\n") < 0) {
            my $count = sysread($client, $head, 4096, length $head);
            # SIGTERM interrupts it.
            next if !defined $count && $!{EINTR};
            last unless $count;
        }
        my $body = "$$\n";
        my $length = length $body;
        syswrite($client, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: $length\r\n\r\n$body");
    }
}
notify("STOPPING=1");
