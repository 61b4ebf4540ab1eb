# Makes a user's units of the system's, with the project in ~/tilewright: sed -f cluster/schedule/user.sed UNIT
/^\(User\|SupplementaryGroups\|PrivateTmp\|ProtectSystem\)=/d
s,/etc/tilewright,%h/.config/tilewright,
s,/opt/tilewright,%h/tilewright,
s,/opt/venv,%h/tilewright/.venv,
